"""Who takes the next step: order, company and shares, under a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.schedule import POLICIES, Batcher, Entry, Fifo, Policy, Shape
from serve.step_times import StepTimes

SMALL, LARGE = Shape(512, 512, (32,)), Shape(1024, 1024, (32,))


def measured() -> StepTimes:
    """A GPU on which two small rows cost 1.2 times one, and large ones gain nothing."""
    times = StepTimes()
    for tokens, seconds, gain in ((1056, 0.02, 0.6), (4128, 0.08, 1.0)):
        for rows in (1, 2, 4):
            times.observe_step(tokens, rows, seconds if rows == 1 else seconds * rows * gain)
    return times


def entry(id: str, shape: Shape = SMALL, *, steps: int = 8, at: float = 0.0, deadline: float = 1e9) -> Entry:
    return Entry(id, shape, steps, at, deadline)


@dataclass
class Simulation:
    policy: Policy
    times: StepTimes
    now: float = 0.0
    finished: dict[str, float] = field(default_factory=dict)

    def run(self, arrivals: list[Entry]) -> dict[str, float]:
        waiting, flying = sorted(arrivals, key=lambda e: e.admitted), []
        while waiting or flying:
            if not flying:
                self.now = max(self.now, waiting[0].admitted)
            while waiting and waiting[0].admitted <= self.now:
                flying.append(waiting.pop(0))
            batch = self.policy.next(flying, self.now)
            self.now += self.times.step_seconds(batch[0].shape.tokens, len(batch) * batch[0].shape.rows)
            for member in batch:
                member.steps_left -= 1
                if member.steps_left == 0:
                    flying.remove(member)
                    self.finished[member.id] = self.now
        return self.finished


def test_fifo_takes_the_oldest() -> None:
    entries = [entry("late", LARGE, at=2), entry("early", SMALL, at=1)]
    assert [e.id for e in Fifo(measured(), 4).next(entries, 3.0)] == ["early"]


def test_edf_takes_the_earliest_deadline_that_can_be_met() -> None:
    entries = [entry("hopeless", deadline=0.01), entry("soon", LARGE, deadline=5), entry("later", deadline=9)]
    assert POLICIES["edf"](measured(), 4).next(entries, 0.0)[0].id == "soon"


@pytest.mark.parametrize("policy", ["fifo", "edf"])
def test_small_ones_of_one_shape_share_a_step_and_large_ones_do_not(policy: str) -> None:
    for shape, members in ((SMALL, 4), (LARGE, 1)):
        batch = POLICIES[policy](measured(), 4).next([entry(str(i), shape) for i in range(9)], 0.0)
        assert len(batch) == members


def test_other_shapes_and_those_that_want_to_be_alone_stay_out() -> None:
    alone = entry("alone")
    alone.alone = True
    longer_caption = entry("caption", Shape(512, 512, (64,)))
    batch = Fifo(measured(), 4).next([entry("head"), alone, longer_caption, entry("company", at=1)], 2.0)
    assert [e.id for e in batch] == ["head", "company"]
    assert [e.id for e in Fifo(measured(), 4).next([alone, entry("other", at=1)], 2.0)] == ["alone"]


def test_nobody_misses_a_deadline_for_the_sake_of_company() -> None:
    tight = entry("tight", deadline=8 * 0.02 + 0.001)
    batch = POLICIES["edf"](measured(), 4).next([tight, entry("other")], 0.0)
    assert [e.id for e in batch] == ["tight"]


def test_a_batch_size_that_was_not_measured_is_not_tried() -> None:
    times = StepTimes()
    times.observe_step(1056, 1, 0.02)
    assert len(Fifo(times, 4).next([entry("a"), entry("b", at=1)], 2.0)) == 1


def test_four_share_a_step_also_where_two_would_not_pay() -> None:
    times = StepTimes()
    for rows, seconds in ((1, 0.020), (2, 0.038), (4, 0.070)):  # gains of 1.05 and 1.14
        times.observe_step(SMALL.tokens, rows, seconds)
    for waiting, together in ((1, 1), (2, 1), (4, 4)):
        assert len(Fifo(times, 4).next([entry(str(i)) for i in range(waiting)], 0.0)) == together


def test_static_runs_a_batch_to_its_end_and_lets_nobody_in() -> None:
    policy = POLICIES["static"](measured(), 4)
    first, second, newcomer = entry("1", steps=2), entry("2", steps=1), entry("3", at=1)
    assert policy.next([first, second, entry("large", LARGE)], 0.0) == [first, second]
    assert policy.next([first, newcomer], 0.1) == [first]
    assert policy.next([newcomer], 0.2) == [newcomer]


def test_static_takes_the_oldest_shape_whole_even_where_it_gains_nothing() -> None:
    batch = POLICIES["static"](measured(), 4).next([entry(str(i), LARGE) for i in range(9)], 0.0)
    assert [e.id for e in batch] == ["0", "1", "2", "3"]


def test_round_robin_gives_everybody_a_step_before_anybody_a_second() -> None:
    policy = POLICIES["round_robin"](measured(), 1)
    crowd = [entry("a"), entry("b", LARGE), entry("c")]
    turns = [policy.next(crowd, 0.0)[0].id for _ in range(4)]
    assert turns == ["a", "b", "c", "a"]
    crowd.append(entry("new", at=1))
    assert [policy.next(crowd, 1.0)[0].id for _ in range(4)] == ["b", "c", "a", "new"]


def test_where_not_all_can_be_on_time_the_longest_steps_back() -> None:
    """One large and three small ones, all feasible alone: the large one first would make all others late."""
    large = entry("large", LARGE, deadline=0.65)
    small = [entry(str(i), Shape(512, 512, (32 + 32 * i,)), deadline=0.66) for i in range(3)]
    times = measured()
    finished = Simulation(POLICIES["edf"](times, 4), times).run([large, *small])
    assert sum(finished[e.id] <= e.deadline for e in (large, *small)) == 3


def test_late_ones_get_a_tenth_of_the_time_while_others_keep_coming() -> None:
    times = measured()
    stream = [entry(f"on-time-{i}", LARGE, at=0.64 * i, deadline=0.64 * i + 5) for i in range(40)]
    late = entry("late", LARGE, at=0.0, deadline=0.1)
    finished = Simulation(POLICIES["edf"](times, 4), times).run([late, *stream])
    assert finished["late"] < 8 * 0.08 / 0.1 * 1.5
    assert all(finished[e.id] <= e.deadline for e in stream[:20])


shapes = st.sampled_from([SMALL, LARGE, Shape(256, 512, (32, 64))])
entries = st.builds(
    lambda shape, steps, at, slack: (shape, steps, at, at + slack),
    shapes, st.integers(1, 12), st.floats(0, 3), st.floats(0, 3),
)  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(drawn=st.lists(entries, min_size=1, max_size=12))
def test_everything_finishes_with_exactly_its_steps(policy: str, drawn: list[tuple[Shape, int, float, float]]) -> None:
    times = measured()
    crowd = [Entry(str(i), shape, steps, at, deadline) for i, (shape, steps, at, deadline) in enumerate(drawn)]
    finished = Simulation(POLICIES[policy](times, 4), times).run(crowd)
    assert sorted(finished) == sorted(e.id for e in crowd)


@settings(deadline=None)
@given(drawn=st.lists(entries, min_size=1, max_size=12), now=st.floats(0, 6))
def test_a_batch_has_one_shape_and_its_head_is_in_it(drawn: list[tuple[Shape, int, float, float]], now: float) -> None:
    crowd = [Entry(str(i), shape, steps, at, deadline) for i, (shape, steps, at, deadline) in enumerate(drawn)]
    for make in POLICIES.values():
        batch = make(measured(), 4).next(crowd, now)
        assert 1 <= len(batch) <= 4
        assert {e.shape for e in batch} == {batch[0].shape}
        assert len({e.id for e in batch}) == len(batch)


def test_nothing_waits_nothing_runs() -> None:
    assert all(make(measured(), 4).next([], 0.0) == [] for make in POLICIES.values())


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(drawn=st.lists(entries, min_size=1, max_size=12))
def test_the_same_arrivals_are_served_the_same_way(policy: str, drawn: list[tuple[Shape, int, float, float]]) -> None:
    def once() -> dict[str, float]:
        crowd = [Entry(str(i), shape, steps, at, deadline) for i, (shape, steps, at, deadline) in enumerate(drawn)]
        return Simulation(POLICIES[policy](measured(), 4), measured()).run(crowd)

    assert once() == once()


@settings(deadline=None)
@given(drawn=st.lists(entries, min_size=1, max_size=12), now=st.floats(0, 3))
def test_company_makes_no_member_late(drawn: list[tuple[Shape, int, float, float]], now: float) -> None:
    crowd = [Entry(str(i), shape, steps, at, deadline) for i, (shape, steps, at, deadline) in enumerate(drawn)]
    batcher = Batcher(measured(), 4)
    batch = POLICIES["edf"](measured(), 4).next(crowd, now)
    assert all(batcher.feasible(e, now, len(batch)) for e in batch if batcher.feasible(e, now))


@settings(max_examples=20, deadline=None)
@given(work=st.integers(1, 8), gap=st.floats(0.1, 0.64))
def test_a_late_one_is_done_in_ten_times_its_work_however_many_others_come(work: int, gap: float) -> None:
    times, now, arrived, served = measured(), 0.0, 0, 0
    policy, late = POLICIES["edf"](times, 4), entry("late", LARGE, steps=work, deadline=0.01)
    others: list[Entry] = []
    while late.steps_left:
        while arrived * gap <= now:
            others.append(entry(str(arrived), LARGE, at=arrived * gap, deadline=arrived * gap + 1))
            arrived += 1
        others = [e for e in others if e.steps_left and now < e.deadline]  # dropped, as hard deadlines are
        (chosen,) = policy.next([late, *others], now)
        chosen.steps_left -= 1
        served += 1
        now += 0.08
        assert served <= 10 * (work + 9)


def test_the_late_share_is_taken_where_nobody_becomes_late_by_it() -> None:
    """A stream that leaves a tenth of the device free: all of it is on time, and the late one does not wait for it."""
    times = measured()
    stream = [entry(f"{i}", LARGE, at=0.72 * i, deadline=0.72 * i + 1.5) for i in range(30)]
    late = entry("late", LARGE, at=0.0, deadline=0.1)
    finished = Simulation(POLICIES["edf"](times, 4), times).run([late, *stream])
    assert all(finished[e.id] <= e.deadline for e in stream)
    assert finished["late"] < 10
