"""Long steps in parts: who may pass between, and when not."""

from __future__ import annotations

import pytest

from serve.engine.schedule import POLICIES, Entry, Shape
from serve.engine.turns import PARTS, Turn, Turns
from serve.step_times import StepTimes
from tests.unit.test_schedule import LARGE, SMALL, entry, measured

HUGE = Shape(2048, 2048, (32,))
HUGE_S, PART_S = 0.6, 0.2


def times() -> StepTimes:
    table = measured()
    for rows in (1, 2, 4):
        table.observe_step(HUGE.tokens, rows, HUGE_S * rows)
    return table


def turns(policy: str = "edf", split_s: float = 0.15) -> Turns:
    table = times()
    return Turns(POLICIES[policy](table, 4), table, split_s)


def begun(turns: Turns, huge: Entry) -> Turn:
    """The huge one's first step, of which one part is done."""
    turn = turns.next([huge], 0.0)
    assert turn is not None
    assert turn.batch == [huge]
    turn.done += 1
    return turn


def test_only_steps_measured_to_last_long_are_split() -> None:
    assert [turns().parts([entry("e", shape)]) for shape in (SMALL, LARGE, HUGE)] == [1, 1, PARTS]
    assert turns().parts([entry("a", LARGE), entry("b", LARGE)]) == PARTS, "two rows of 80 ms are one step of 160"
    assert turns(split_s=0).parts([entry("e", HUGE)]) == 1


@pytest.mark.parametrize("policy", ["fifo", "static", "round_robin"])
def test_policies_that_let_nobody_pass_split_nothing(policy: str) -> None:
    assert turns(policy).parts([entry("e", HUGE)]) == 1


def test_a_short_one_that_is_due_earlier_passes_and_the_long_one_goes_on() -> None:
    between, huge, short = turns(), entry("huge", HUGE, deadline=100), entry("short", SMALL, steps=1, deadline=0.5)
    split = begun(between, huge)
    passing = between.next([huge, short], PART_S)
    assert passing is not None
    assert passing.batch == [short]
    assert between.next([huge], PART_S + 0.02) is split
    split.done = PARTS
    following = between.next([huge], HUGE_S + 0.02)
    assert following is not None
    assert following is not split


def test_who_is_due_later_waits_for_the_end_of_the_step() -> None:
    between, huge, later = turns(), entry("huge", HUGE, deadline=10), entry("later", SMALL, deadline=11)
    split = begun(between, huge)
    assert between.next([huge, later], PART_S) is split


def test_another_long_one_does_not_pass() -> None:
    between, huge = turns(), entry("huge", HUGE, deadline=100)
    split = begun(between, huge)
    assert between.next([huge, entry("other", HUGE, deadline=10)], PART_S) is split


def test_a_step_whose_members_have_left_is_dropped() -> None:
    between, huge, other = turns(), entry("huge", HUGE, deadline=100), entry("other", LARGE, deadline=200)
    begun(between, huge)
    turn = between.next([other], PART_S)
    assert turn is not None
    assert turn.batch == [other]
    assert between.paused is None


@pytest.mark.parametrize(("deadline", "passes"), [(0.5, True), (0.7, False)])
def test_a_late_one_lets_pass_only_who_cannot_wait_for_the_rest(deadline: float, passes: bool) -> None:
    between, late = turns(), entry("late", HUGE, deadline=0.1)
    split = begun(between, late)
    turn = between.next([late, entry("short", SMALL, steps=1, deadline=deadline)], PART_S)
    assert (turn is not split) == passes


def test_those_that_cannot_wait_do_not_hold_up_a_late_one_for_ever() -> None:
    between, late, now = turns(), entry("late", HUGE, deadline=0.1), PART_S
    split = begun(between, late)
    for number in range(10_000):
        turn = between.next([late, entry(str(number), SMALL, steps=1, deadline=now + 0.03)], now)
        if turn is split:
            break
        now += 0.02
    assert PART_S < now < PART_S + 2 * (HUGE_S - PART_S) / 0.1 + 0.1


def test_a_shape_that_was_split_stays_so() -> None:
    table = times()
    between = Turns(POLICIES["edf"](table, 4), table, 0.15)
    assert between.parts([entry("e", HUGE)]) == PARTS
    for _ in range(50):
        table.observe_step(HUGE.tokens, 1, 0.01)
    assert between.parts([entry("e", HUGE)]) == PARTS
