"""The step policies under a virtual clock: the product's schedule.py and turns.py over measured step times of a GPU.

    python -m benchmarks.scheduler [--table FILE] [--requests 400] [--seeds 3] [--exact-load] [--hard] [--json FILE]

Takes seconds, the same figures on every machine. One GPU, sizes 512/768/1024/1536 px at 30/20/40/10 %, 8 steps; a
request has `alpha` times its time alone on the GPU (steps and decoding). Load 1.0 is what the GPU could do without
batching. Traces are drawn at that rate, and begin with an idle GPU; with `--exact-load` their gaps are scaled, so that
the work in a trace is exactly the load times its length. With `--hard` what is late is dropped, as with an explicit
`deadline_ms`; what is dropped is a miss.

A table is JSON as in `benchmarks/h200_steps.json`, the default: `step_ROWS` gives seconds of one step by the tokens of
a row's sequence, (width / 16) * (height / 16) padded to 32, plus 32 of the caption; `decode` seconds by pixels;
`device` and `sources` say where they come from. `Engine.times.to_table()`, which every replica sends with its
heartbeats, has this format.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from serve.engine.schedule import POLICIES, Entry, Policy, Shape
from serve.engine.turns import Turns
from serve.settings import SchedulerSettings
from serve.step_times import StepTimes

H200 = Path(__file__).with_name("h200_steps.json")
MIX = {512: 0.3, 768: 0.2, 1024: 0.4, 1536: 0.1}
STEPS = 8
MAX_BATCH, SPLIT_S = SchedulerSettings().max_batch, SchedulerSettings().split_step_ms / 1e3
BURSTINESS = 4.0  # variance over squared mean of the bursty gaps; Poisson has 1
ATTAINED = 0.95
WARM_S = 10.0  # at the start of a trace nothing is counted

ALPHAS, LOADS, ARRIVALS = (3.0, 5.0), (0.5, 0.8, 1.0), ("poisson", "bursty")


class Measured(StepTimes):
    """A table that does not change: every answer is computed once."""

    def __init__(self, table: Mapping[str, Mapping[str, float]]) -> None:
        known = StepTimes.from_table(table)
        self.step_seconds = cache(known.step_seconds)  # type: ignore[method-assign]
        self.decode_seconds = cache(known.decode_seconds)  # type: ignore[method-assign]
        self.covers = cache(known.covers)  # type: ignore[method-assign]

    def solo_seconds(self, shape: Shape) -> float:
        return STEPS * self.step_seconds(shape.tokens, shape.rows) + self.decode_seconds(shape.pixels)

    def mean_seconds(self) -> float:
        return sum(share * self.solo_seconds(shape_of(side)) for side, share in MIX.items())


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    side: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Served:
    """`latency` is infinite for what was dropped; `slowdown` is latency over the time alone."""

    latency: float
    slowdown: float
    met: bool


@dataclass(frozen=True, slots=True)
class Score:
    """Of one trace: the share that met its deadline, and the 99th percentile of those that were late, not dropped."""

    attained: float
    late_p99_s: float
    late_p99_slowdown: float
    dropped: float
    split: int = 0

    @classmethod
    def of(cls, served: Sequence[Served], split: int) -> Score:
        late = [one for one in served if not one.met and one.latency < float("inf")]
        return cls(
            attained=sum(one.met for one in served) / len(served),
            late_p99_s=_p99([one.latency for one in late]),
            late_p99_slowdown=_p99([one.slowdown for one in late]),
            dropped=sum(one.latency == float("inf") for one in served) / len(served),
            split=split,
        )


def shape_of(side: int) -> Shape:
    return Shape(side, side, (32,))


def trace(
    times: Measured,
    *,
    requests: int,
    load: float,
    alpha: float,
    seed: int,
    arrivals: str = "poisson",
    exact: bool = False,
) -> list[Arrival]:
    chance, rate, now = random.Random(seed), load / times.mean_seconds(), 0.0
    drawn = list[tuple[float, int]]()
    for _ in range(requests):
        poisson = arrivals == "poisson"
        now += chance.expovariate(rate) if poisson else chance.gammavariate(1 / BURSTINESS, BURSTINESS / rate)
        drawn.append((now, chance.choices(list(MIX), list(MIX.values()))[0]))
    work = {side: times.solo_seconds(shape_of(side)) for side in MIX}
    scale = sum(work[side] for _, side in drawn) / load / now if exact else 1.0
    return [Arrival(scale * at, side, scale * at + alpha * work[side]) for at, side in drawn]


@dataclass
class Device:
    """The engine's loop with a clock that jumps: receive, drop, choose, run one part of a step, decode what is done."""

    policy: Policy
    times: Measured
    split_s: float
    hard: bool = False

    def run(self, arrivals: Sequence[Arrival]) -> tuple[dict[int, float], int]:
        """When each request was done, those that were dropped left out; and how many steps were split."""
        self._turns = Turns(self.policy, self.times, self.split_s)
        self._now, self._split = 0.0, 0
        self._flying: dict[str, Entry] = {}
        self._finished: dict[int, float] = {}
        waiting = list(reversed(list(enumerate(arrivals))))
        while waiting or self._flying:
            if not self._flying:
                self._now = max(self._now, waiting[-1][1].at)
            while waiting and waiting[-1][1].at <= self._now:
                number, arrival = waiting.pop()
                entry = Entry(str(number), shape_of(arrival.side), STEPS, arrival.at, arrival.deadline)
                self._flying[entry.id] = entry
            self._step()
        return self._finished, self._split

    def _step(self) -> None:
        if self.hard:
            self._flying = {id: entry for id, entry in self._flying.items() if entry.deadline >= self._now}
        turn = self._turns.next(list(self._flying.values()), self._now)
        if turn is None:
            return
        shape = turn.batch[0].shape
        self._now += self.times.step_seconds(shape.tokens, shape.rows * len(turn.batch)) / turn.parts
        turn.done += 1
        if not turn.ended:
            return
        self._split += turn.parts > 1
        for entry in turn.batch:
            entry.steps_left -= 1
        done = [entry for entry in turn.batch if entry.steps_left == 0 and entry.id in self._flying]
        for entry in done:
            del self._flying[entry.id]
        self._now += len(done) * self.times.decode_seconds(shape.pixels)  # together, at the price of their pixels
        self._finished |= {int(entry.id): self._now for entry in done}


def play(name: str, times: Measured, arrivals: Sequence[Arrival], *, hard: bool = False) -> Score:
    device = Device(POLICIES[name](times, MAX_BATCH), times, SPLIT_S, hard)
    finished, split = device.run(arrivals)
    return Score.of(list(_served(times, arrivals, finished)), split)


def _served(times: Measured, arrivals: Sequence[Arrival], finished: Mapping[int, float]) -> Iterator[Served]:
    for number, arrival in enumerate(arrivals):
        if arrival.at >= WARM_S:
            latency = finished.get(number, float("inf")) - arrival.at
            slowdown = latency / times.solo_seconds(shape_of(arrival.side))
            yield Served(latency, slowdown, arrival.at + latency <= arrival.deadline)


def mean_score(scores: Sequence[Score]) -> Score:
    """Of several traces; the worst of the late ones."""
    return Score(
        attained=statistics.mean(score.attained for score in scores),
        late_p99_s=max(score.late_p99_s for score in scores),
        late_p99_slowdown=max(score.late_p99_slowdown for score in scores),
        dropped=statistics.mean(score.dropped for score in scores),
        split=sum(score.split for score in scores),
    )


def goodput(attained: Callable[[float], float], most: float = 2.0) -> float:
    """The highest load at which `ATTAINED` meet their deadline, to 1 %."""
    low, high = 0.0, most
    while high - low > 0.01:
        load = (low + high) / 2
        low, high = (load, high) if attained(load) >= ATTAINED else (low, load)
    return low


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))] if values else 0.0


@dataclass(frozen=True, slots=True)
class Bench:
    times: Measured
    requests: int
    seeds: int
    hard: bool = False
    exact: bool = False

    def score(self, name: str, arrivals: str, alpha: float, load: float) -> Score:
        traces = (
            trace(
                self.times,
                requests=self.requests,
                load=load,
                alpha=alpha,
                seed=seed,
                arrivals=arrivals,
                exact=self.exact,
            )
            for seed in range(self.seeds)
        )
        return mean_score([play(name, self.times, drawn, hard=self.hard) for drawn in traces])

    def goodput_rps(self, name: str, arrivals: str, alpha: float) -> float:
        return goodput(lambda load: self.score(name, arrivals, alpha, load).attained) / self.times.mean_seconds()

    def rows(self) -> Iterator[dict[str, Any]]:
        for arrivals in ARRIVALS:
            for alpha in ALPHAS:
                for name in POLICIES:
                    scores = {load: self.score(name, arrivals, alpha, load) for load in LOADS}
                    yield {
                        "arrivals": arrivals,
                        "alpha": alpha,
                        "policy": name,
                        "scores": {str(load): asdict(score) for load, score in scores.items()},
                        "goodput_rps": self.goodput_rps(name, arrivals, alpha),
                    }


def line(row: Mapping[str, Any]) -> str:
    cells = [
        f"{100 * score['attained']:5.1f} % (late: {score['late_p99_s']:5.1f} s, {score['late_p99_slowdown']:4.0f}x)"
        for score in row["scores"].values()
    ]
    who = f"{row['arrivals']:8} {row['alpha']:.0f}  {row['policy']:12}"
    return " | ".join([who, *cells, f"{row['goodput_rps']:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=H200)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--exact-load", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times, device = load_table(options.table)
    bench = Bench(times, options.requests, options.seeds, options.hard, options.exact_load)
    print(f"{device}; a mean request takes {times.mean_seconds():.2f} s alone, so load 1.0 is ", end="")
    print(f"{1 / times.mean_seconds():.2f} requests/s\nattained (p99 of the late: seconds, times its time alone)")
    loads = " | ".join(f"load {load:<31}" for load in LOADS)
    print(f"{'arrivals α  policy':24} | {loads} | req/s at {ATTAINED:.0%}")
    rows = []
    for row in bench.rows():
        rows.append(row)
        print(line(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


def load_table(path: Path) -> tuple[Measured, str]:
    document = json.loads(path.read_text())
    table = {name: points for name, points in document.items() if name == "decode" or name.startswith("step_")}
    return Measured(table), str(document.get("device", path.name))


if __name__ == "__main__":
    main()
