"""Who is refused without asking the Dispatcher again, for how long, and who never is."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from serve.errors import QueueFull
from serve.jobs.standing import USERS, StandingRefusals
from serve.messages import Batch, Submission
from tests.unit.replicas import order


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock) -> StandingRefusals:
    return StandingRefusals(clock)


def full(*, for_all: bool = True, holds_s: float = 0.25) -> QueueFull:
    return QueueFull("full", hint="later", retry_after=3, for_all=for_all, holds_s=holds_s)


def test_nobody_is_refused_who_was_not_told_so(refusals: StandingRefusals) -> None:
    refusals.check(order())


def test_a_full_queue_is_full_for_everybody_while_it_holds(refusals: StandingRefusals, clock: Clock) -> None:
    refusals.heard(full(), order(user="ada"))
    clock.now += 0.24
    with pytest.raises(QueueFull) as refused:
        refusals.check(order(user="bob"))
    assert (refused.value.message, refused.value.retry_after) == ("full", 3)
    clock.now += 0.02
    refusals.check(order(user="bob"))


def test_a_user_with_too_many_jobs_is_refused_alone(refusals: StandingRefusals) -> None:
    refusals.heard(full(for_all=False), order(user="ada"))
    refusals.check(order(user="bob"))
    with pytest.raises(QueueFull):
        refusals.check(order(user="ada"))


@pytest.mark.parametrize(
    "submission",
    [
        order(key="again"),  # it may repeat a job that was accepted
        order(seeded=True),  # it may be answered from the cache
        replace(order(), batch=Batch(id="b", jobs=2)),
    ],
)
def test_who_may_not_need_a_place_is_let_through(refusals: StandingRefusals, submission: Submission) -> None:
    refusals.heard(full(), order(user="ada"))
    refusals.check(submission)


def test_a_seed_whose_result_is_drawn_anew_needs_a_place(refusals: StandingRefusals) -> None:
    refusals.heard(full(), order(user="ada"))
    with pytest.raises(QueueFull):
        refusals.check(order(seeded=True, cache="skip"))


def test_only_so_many_users_are_remembered(refusals: StandingRefusals, clock: Clock) -> None:
    for number in range(USERS):
        refusals.heard(full(for_all=False), order(user=f"user {number}"))
    refusals.heard(full(for_all=False), order(user="ada"))
    refusals.check(order(user="ada"))
    clock.now += 1
    refusals.heard(full(for_all=False), order(user="ada"))
    with pytest.raises(QueueFull):
        refusals.check(order(user="ada"))


def test_a_refusal_crosses_processes_whole() -> None:
    copy = pickle.loads(pickle.dumps(full(for_all=False)))
    assert (copy.message, copy.hint, copy.retry_after) == ("full", "later", 3)
    assert (copy.for_all, copy.holds_s) == (False, 0.25)
