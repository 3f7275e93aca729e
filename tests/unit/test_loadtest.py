"""What load tests count and compare; they run for real in tests/cluster/test_loadtest.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from loadtest.compare import chosen
from loadtest.ledger import Ledger
from loadtest.measure import Attempt, Figures
from loadtest.plan import SIZES, Plan
from loadtest.subjects import SUBJECTS
from loadtest.table import ROWS, report


def test_a_job_that_ends_is_not_lost():
    ledger = Ledger()
    ledger.accept("a")
    ledger.see("a", "running")
    ledger.see("a", "succeeded")
    ledger.see("a", "succeeded")
    ledger.close()
    assert str(ledger) == "accepted jobs: 1 succeeded, 0 lost"


def test_a_job_that_never_ends_is_lost():
    ledger = Ledger()
    ledger.accept("a")
    ledger.see("a", "running")
    ledger.close()
    assert ledger.lost == {"a": "still running"}
    assert not ledger.open


def test_a_success_without_its_picture_is_lost():
    ledger = Ledger()
    ledger.accept("a")
    ledger.see("a", "succeeded")
    ledger.lose("a", "no picture")
    assert ledger.lost == {"a": "no picture"}


def test_every_deployment_meets_the_same_trace():
    plan = Plan(requests=200)
    assert plan.trace(0.2, 0) == plan.trace(0.2, 0)
    assert plan.trace(0.2, 0) != plan.trace(0.2, 1)


def test_a_trace_has_its_rate_and_its_sizes():
    trace = Plan(requests=2000, load=0.5).trace(0.2, 0)
    assert trace[-1][0] == pytest.approx(2000 * 0.2 / 0.5, rel=0.1)
    for size, share in SIZES.items():
        assert sum(order.size_px == size for _, order in trace) / 2000 == pytest.approx(share, abs=0.04)
    assert len({order.prompt for _, order in trace}) == 2000


def figures(subject: str, picture_s: float, failed: int = 0, **fields: Any) -> Figures:
    trace = [Attempt(128, first_byte_s=0.01, picture_s=picture_s) for _ in range(10 - failed)]
    trace += [Attempt(128, error="Refused: 503") for _ in range(failed)]
    known: dict[str, Any] = {"cold_start_s": 5.0, "alone_s": {128: 0.2}, "stable_crowd": 8, "peak_bytes": 10**9}
    return Figures(subject, 0, trace=trace, **(known | fields))


def table(*found: Figures) -> str:
    machine = {
        "date": "2026-11-22T03:00:00",
        "commit": "c",
        "cpu": "x",
        "cores": 2,
        "python": "3",
        "load_average": [1.0],
    }
    one = {
        "machine": machine,
        "plan": asdict(Plan()),
        "bare_s": {128: 0.2},
        "figures": [asdict(each) for each in found],
    }
    return report([one, one])


def row(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_best_of_a_row_is_bold():
    text = table(figures("flask", 0.9), figures("call", 0.5, stable_crowd=16))
    assert row(text, "mean time to picture") == ["900 ms", "**500 ms**"]
    assert row(text, "largest stable crowd") == ["8", "**16**"]
    assert row(text, "mean wait") == ["700 ms", "**300 ms**"]
    assert "does not lead" not in text


def test_what_failed_was_not_on_time():
    text = table(figures("flask", 0.7, failed=4), figures("call", 0.5))
    assert row(text, "on time, α = 3") == ["0 %", "**100 %**"]
    assert row(text, "on time, α = 5") == ["60 %", "**100 %**"]
    assert row(text, "failures, in trace and crowds") == ["8", "**0**"]  # of both rounds


def test_where_ours_does_not_lead_the_table_says_why():
    text = table(figures("flask", 0.9, cold_start_s=5.0), figures("call", 0.5, cold_start_s=20.0))
    assert "* cold start to first picture: ours does not lead. " in text


def test_a_row_where_one_of_ours_leads_needs_no_excuse():
    text = table(figures("flask", 0.7), figures("call", 0.5), figures("job", 0.9))
    assert "time to picture: ours" not in text


def test_unknown_deployments_are_refused():
    with pytest.raises(SystemExit, match="there is no nginx"):
        chosen("flask,nginx")


@pytest.mark.parametrize(
    "subject", [subject for subject in SUBJECTS if not subject.ours], ids=lambda subject: subject.name
)
def test_every_baseline_is_described(subject: Any, tmp_path: Path):
    text = Path("loadtest/baselines/README.md").read_text()
    commands = " ".join(part for start in subject.processes(9600, tmp_path) for part in start.command)
    (module,) = {path.stem for path in Path("loadtest/baselines").glob("*.py") if f"baselines.{path.stem}" in commands}
    assert f"`{module}.py`" in text


def test_titles_of_rows_are_unique():
    assert len({row.title for row in ROWS}) == len(ROWS)
