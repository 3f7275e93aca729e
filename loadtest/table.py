"""Rounds of `loadtest.compare` as Markdown: a row for each thing that users or operators notice, the best in bold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from loadtest.subjects import SUBJECTS

Figures = dict[str, Any]  # measure.Figures of one round, with the "bare_s" of that round
TIE = 1.05  # so near to the best counts as the best: repeated runs differ by more


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    value: Callable[[list[Figures]], float]
    show: Callable[[float], str]
    why: str  # ours does not lead, where it does not
    more_is_better: bool = False

    def good(self, value: float, best: float) -> bool:
        return value * TIE >= best if self.more_is_better else value <= best * TIE


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms"


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _median(name: str) -> Callable[[list[Figures]], float]:
    return lambda rounds: float(statistics.median(found[name] for found in rounds))


def _trace(rounds: list[Figures]) -> Iterable[tuple[Figures, dict[str, Any]]]:
    return ((found, attempt) for found in rounds for attempt in found["trace"])


def _pictures(rounds: list[Figures]) -> list[float]:
    return [float(attempt["picture_s"]) for _, attempt in _trace(rounds) if attempt["picture_s"] is not None]


def _p95(rounds: list[Figures]) -> float:
    spent = sorted(_pictures(rounds))
    return spent[int(0.95 * (len(spent) - 1))]


def _wait(rounds: list[Figures]) -> float:
    """Beyond what the same size takes alone on the same deployment."""
    waits = [
        max(0.0, float(attempt["picture_s"]) - float(found["alone_s"][attempt["size_px"]]))
        for found, attempt in _trace(rounds)
        if attempt["picture_s"] is not None
    ]
    return statistics.mean(waits)


def _first_byte(rounds: list[Figures]) -> float:
    return statistics.median(float(a["first_byte_s"]) for _, a in _trace(rounds) if a["first_byte_s"] is not None)


def _failures(rounds: list[Figures]) -> float:
    crowds = sum(found["crowd_failures"] for found in rounds)
    return float(crowds) + sum(attempt["error"] is not None for _, attempt in _trace(rounds))


def _on_time(times: float) -> Callable[[list[Figures]], float]:
    """Share that had their picture within `times` what diffusers takes for the size, without a server."""

    def value(rounds: list[Figures]) -> float:
        limits = [(attempt, times * float(found["bare_s"][attempt["size_px"]])) for found, attempt in _trace(rounds)]
        return sum(bool((attempt["picture_s"] or math.inf) <= limit) for attempt, limit in limits) / len(limits)

    return value


OVERHEAD = (
    "This model draws in a tenth of a second, beside which HTTP, Ray Serve and a queue on disk show; of a picture that "
    "takes a GPU half a second they are a few percent (benchmarks/RESULTS.md)."
)
HIT = (
    "The other cache answers from the memory of the one process that draws. A hit of ours is a job with an id, events "
    "and a picture of its own, on disk before it is answered, and the same from every Gateway."
)
ROWS = (
    Row("largest stable crowd", _median("stable_crowd"), "{:.0f}".format, OVERHEAD, more_is_better=True),
    Row("mean time to picture", lambda rounds: statistics.mean(_pictures(rounds)), seconds, why=OVERHEAD),
    Row("95 % have it within", _p95, seconds, why=OVERHEAD),
    Row("mean wait", _wait, seconds, why=OVERHEAD),
    Row("failures, in trace and crowds", _failures, "{:.0f}".format, why="That is a bug."),
    Row(
        "first byte (median)",
        _first_byte,
        seconds,
        why="A job of ours is on disk before it is acknowledged; Gradio's is in the memory of its process, Celery's in "
        "that of Redis until its next snapshot.",
    ),
    Row("on time, α = 3", _on_time(3), share, more_is_better=True, why=OVERHEAD),
    Row("on time, α = 5", _on_time(5), share, more_is_better=True, why=OVERHEAD),
    Row("the same again", _median("again_s"), seconds, why=HIT),
    Row("the same again, others drawing", _median("again_busy_s"), seconds, why=HIT),
    Row(
        "cold start to first picture",
        _median("cold_start_s"),
        seconds,
        why="Ray and a process for each part start on the same few cores, and sizes are measured before it is ready. "
        "Weights of a real model take longer than that in any of them.",
    ),
    Row(
        "memory, peak of all processes",
        _median("peak_bytes"),
        lambda value: f"{value / 1e6:.0f} MB",
        why="Ray's own processes, and torch in two of ours instead of one. It does not grow with the model, "
        "whose weights are there once, as in the others.",
    ),
)


def report(rounds: list[dict[str, Any]]) -> str:
    """`rounds` as they are in the JSON file, or as they were just measured."""
    by_name: dict[str, list[Figures]] = {}
    for one in rounds:
        bare_s = {int(size): spent for size, spent in one["bare_s"].items()}
        for found in one["figures"]:
            alone_s = {int(size): spent for size, spent in found["alone_s"].items()}
            by_name.setdefault(found["subject"], []).append(found | {"alone_s": alone_s, "bare_s": bare_s})
    subjects = [subject for subject in SUBJECTS if subject.name in by_name]
    lines = [
        _conditions(rounds),
        "",
        "| | " + " | ".join(subject.title for subject in subjects) + " |",
        "|---" * (len(subjects) + 1) + "|",
    ]
    notes = []
    for row in ROWS:
        values = [row.value(by_name[subject.name]) for subject in subjects]
        best = max(values) if row.more_is_better else min(values)
        cells = [f"**{row.show(value)}**" if row.good(value, best) else row.show(value) for value in values]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
        ours = [row.good(value, best) for subject, value in zip(subjects, values, strict=True) if subject.ours]
        if ours and not any(ours):
            notes.append(f"* {row.title}: ours does not lead. {row.why}")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _conditions(rounds: list[dict[str, Any]]) -> str:
    machine, plan = rounds[0]["machine"], rounds[0]["plan"]
    commits = "/".join(dict.fromkeys(str(one["machine"]["commit"]) for one in rounds))
    loads = ", ".join(f"{load:.1f}" for one in rounds for load in one["machine"]["load_average"])
    bare = {size: statistics.median(one["bare_s"][size] for one in rounds) for size in rounds[0]["bare_s"]}
    alone = ", ".join(f"{size} px {1e3 * spent:.0f} ms" for size, spent in bare.items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"
    lines = (
        f"{machine['date'][:10]}, commit {commits}, {hardware};",
        f"load average before and after each round {loads}; {len(rounds)} round(s), seed {plan['seed']}; a trace of",
        f"{plan['requests']} requests at {plan['load']:.0%} of what diffusers could draw without a server ({alone});",
        f"a crowd is stable while nobody fails and 95 % wait at most {plan['stable_s']:g} s.",
    )
    return "\n".join(lines)
