from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.jobs.estimate import Work, etas, seconds_until_done, solo_seconds, spread_seconds
from serve.messages import ImageRequest, Submission
from serve.step_times import StepTimes

work = st.builds(Work, images=st.integers(1, 10), seconds=st.floats(0.01, 100))
works = st.lists(work, max_size=20)


def submission(n: int = 1, guidance: float = 0.0, **more: Any) -> Submission:
    request = ImageRequest(
        model="m", prompt="a cat", width=128, height=128, steps=8, seed=5, n=n, guidance=guidance, **more
    )
    return Submission(job_id="j", request=request, prompt_tokens=20)


def measured() -> StepTimes:
    return StepTimes.from_table({"step_1": {"96": 0.5}, "step_2": {"96": 0.75}, "decode": {"16384": 1.0}})


def test_alone_a_job_takes_the_measured_steps_and_decoding_of_each_image() -> None:
    assert solo_seconds(submission(), measured()) == 8 * 0.5 + 1
    assert solo_seconds(submission(n=3), measured()) == 3 * (8 * 0.5 + 1)


def test_a_controlnet_takes_longer_steps_and_a_picture_that_is_encoded() -> None:
    times = measured()
    times.expect("lines", 1.5)
    lines = {"controlnet": "lines", "control_image": "a" * 64}
    assert solo_seconds(submission(**lines), times) == 8 * 1.5 * 0.5 + 1.5
    begun = {"image": "b" * 64, "mask": "c" * 64, "strength": 0.5}  # no mask is encoded
    assert solo_seconds(submission(**lines | begun, guidance=4.0), times) == 4 * 1.5 * 0.75 + 2


def test_guidance_takes_steps_of_two_rows() -> None:
    assert solo_seconds(submission(guidance=4.0), measured()) == 8 * 0.75 + 1


def test_without_measurements_the_work_is_unknown() -> None:
    assert solo_seconds(submission(), StepTimes()) == 0
    assert list(etas([], [Work(1, 0.0), Work(1, 2.0)], 1)) == [None, None]


def test_work_ahead_is_shared_by_the_replicas_and_own_work_is_not() -> None:
    assert seconds_until_done([6.0, 2.0], 3.0, 2) == 7.0
    assert list(etas([Work(1, 4.0)], [Work(1, 3.0), Work(1, 1.0)], 2)) == [5.0, 4.5]


@pytest.mark.parametrize(("replicas", "seconds"), [(1, 50), (2, 30), (4, 20), (5, 10), (9, 10)])
def test_images_of_one_job_are_drawn_side_by_side(replicas: int, seconds: float) -> None:
    assert spread_seconds(Work(images=5, seconds=50.0), replicas) == seconds


@given(works, works)
def test_without_a_replica_nothing_is_known(begun: list[Work], waiting: list[Work]) -> None:
    assert list(etas(begun, waiting, 0)) == [None] * len(waiting)


@given(works, works, st.integers(1, 8))
def test_each_job_waits_for_those_before_it_and_draws_its_own(
    begun: list[Work], waiting: list[Work], replicas: int
) -> None:
    estimates = list(etas(begun, waiting, replicas))
    for number, eta in enumerate(estimates):
        ahead = sum(work.seconds for work in [*begun, *waiting[:number]])
        assert eta == pytest.approx(ahead / replicas + spread_seconds(waiting[number], replicas))


@given(works, work, st.integers(1, 8))
def test_one_more_replica_never_makes_it_later(ahead: list[Work], own: Work, replicas: int) -> None:
    (before,), (after,) = etas(ahead, [own], replicas), etas(ahead, [own], replicas + 1)
    assert before is not None
    assert after is not None
    assert 0 < after <= before + 1e-9
