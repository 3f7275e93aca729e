from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.jobs.deadlines import FACTOR, UNKNOWN_S, SoftDeadlines
from serve.messages import PRIORITIES, Priority

seconds = st.floats(0.01, 30)


@pytest.mark.parametrize(("priority", "factor"), FACTOR.items())
def test_a_job_has_so_many_times_its_time_alone(priority: Priority, factor: float) -> None:
    assert SoftDeadlines().accept(priority, 2.0, now=100.0) == 100 + 2 * factor


def test_an_unmeasured_job_has_some_time() -> None:
    assert SoftDeadlines().accept("interactive", 0.0, now=100.0) == 100 + 3 * UNKNOWN_S


def test_what_is_placed_at_once_keeps_its_deadline_so_that_small_overtakes_large() -> None:
    deadlines = SoftDeadlines()
    large, small = deadlines.accept("standard", 9.0, 0.0), deadlines.accept("standard", 1.0, 0.01)
    assert deadlines.place("standard", large, alone_s=9.0, image_s=9.0, now=0.0, replicas=1) == large
    assert deadlines.place("standard", small, alone_s=1.0, image_s=1.0, now=0.02, replicas=1) == small


def test_classes_do_not_hold_each_other_up() -> None:
    deadlines = SoftDeadlines()
    deadlines.place("batch", 60.0, alone_s=1.0, image_s=1.0, now=5.0, replicas=1)
    assert deadlines.place("interactive", 3.0, alone_s=1.0, image_s=1.0, now=6.0, replicas=1) == 9.0


def test_what_is_placed_because_its_class_is_owed_ranks_with_the_class_whose_turn_it_takes() -> None:
    deadlines = SoftDeadlines()
    accepted = deadlines.accept("batch", 1.0, now=0.0)
    owed = deadlines.place("interactive", accepted, alone_s=1.0, image_s=1.0, now=5.0, replicas=1, owed=True)
    assert owed == 5 + FACTOR["interactive"]
    following = deadlines.place("interactive", 4.0, alone_s=1.0, image_s=1.0, now=5.0, replicas=1)
    assert following > owed, "and in the order of the queue"


@given(st.lists(seconds, min_size=1, max_size=30), st.sampled_from(PRIORITIES), st.integers(1, 8))
def test_jobs_that_waited_stay_in_the_order_of_the_queue(sizes: list[float], mine: Priority, replicas: int) -> None:
    deadlines, now, given_out = SoftDeadlines(), 1000.0, list[float]()
    for size in sizes:
        accepted = deadlines.accept(mine, size, now - 100)
        given_out.append(deadlines.place(mine, accepted, alone_s=size, image_s=size, now=now, replicas=replicas))
        assert given_out[-1] >= now + FACTOR[mine] * size  # never late before it begins
        now += 0.001
    gaps = [later - earlier for earlier, later in pairwise(given_out)]
    assert all(gap >= size / 2 / replicas - 1e-9 for gap, size in zip(gaps, sizes[1:], strict=True))
