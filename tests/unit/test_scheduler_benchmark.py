"""What the policies reach on the seeded traces of the benchmark: its clock is virtual, its figures always the same."""

from __future__ import annotations

import pytest

from benchmarks.scheduler import ATTAINED, H200, Bench, Score, load_table, play, trace
from serve.engine.schedule import POLICIES

BENCH = Bench(load_table(H200)[0], requests=400, seeds=3)


@pytest.mark.parametrize(("alpha", "goal"), [(3.0, 0.94), (5.0, 0.99)])
def test_earliest_deadline_attains_its_goal_at_load_0_8(alpha: float, goal: float) -> None:
    score = BENCH.score("edf", "poisson", alpha, 0.8)
    assert score.attained >= goal
    assert score.late_p99_s < 60
    assert score.split, "1536² steps are long enough to be split"


@pytest.mark.parametrize("other", ["fifo", "static"])
def test_earliest_deadline_has_twice_the_goodput_of_others(other: str) -> None:
    rate = 2 * BENCH.goodput_rps(other, "poisson", 5.0)
    assert BENCH.score("edf", "poisson", 5.0, rate * BENCH.times.mean_seconds()).attained >= ATTAINED


@pytest.mark.parametrize("arrivals", ["poisson", "bursty"])
@pytest.mark.parametrize("other", sorted(set(POLICIES) - {"edf"}))
def test_earliest_deadline_is_ahead_under_overload_too(other: str, arrivals: str) -> None:
    edf, theirs = (BENCH.score(name, arrivals, 3.0, 1.0).attained for name in ("edf", other))
    assert edf > 1.5 * theirs


def test_what_is_dropped_past_a_hard_deadline_is_a_miss() -> None:
    drawn = trace(BENCH.times, requests=200, load=1.2, alpha=3.0, seed=0)
    hard, soft = play("fifo", BENCH.times, drawn, hard=True), play("fifo", BENCH.times, drawn)
    assert hard.dropped > 0
    assert hard.attained + hard.dropped <= 1
    assert soft.dropped == 0


def test_a_trace_is_the_same_for_every_policy_and_has_the_load_it_says() -> None:
    one, two = (trace(BENCH.times, requests=300, load=0.8, alpha=3.0, seed=5, exact=True) for _ in range(2))
    assert one == two
    work = sum((arrival.deadline - arrival.at) / 3.0 for arrival in one)
    assert work / one[-1].at == pytest.approx(0.8)


def test_splitting_long_steps_helps_short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = trace(BENCH.times, requests=400, load=0.8, alpha=3.0, seed=0)
    split = play("edf", BENCH.times, drawn)
    monkeypatch.setattr("benchmarks.scheduler.SPLIT_S", 0.0)
    whole = play("edf", BENCH.times, drawn)
    assert isinstance(whole, Score)
    assert whole.split == 0
    assert split.attained >= whole.attained
