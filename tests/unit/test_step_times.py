from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.step_times import SMOOTHING, StepTimes, sequence_tokens


def table() -> StepTimes:
    times = StepTimes()
    for tokens, seconds in ((100, 1.0), (300, 2.0)):
        times.observe_step(tokens, 1, seconds)
    times.observe_step(100, 4, 3.0)
    times.observe_decode(10_000, 0.5)
    return times


@pytest.mark.parametrize(("tokens", "seconds"), [(50, 1.0), (100, 1.0), (200, 1.5), (300, 2.0), (600, 4.0)])
def test_between_measured_sizes_it_interpolates_and_beyond_it_grows_in_proportion(tokens: int, seconds: float) -> None:
    assert table().step_seconds(tokens) == pytest.approx(seconds)


def test_rows_that_were_not_measured_follow_from_those_that_were() -> None:
    assert table().step_seconds(100, 8) == pytest.approx(6.0)
    assert table().step_seconds(100, 2) == pytest.approx(1.0 + 2.0 / 3)
    assert table().covers(3)
    assert not table().covers(8)


def test_an_empty_table_says_unknown() -> None:
    assert StepTimes().image_seconds(steps=8, tokens=96, rows=1, pixels=128 * 128) == 0.0


def test_a_picture_costs_its_steps_and_its_decoding() -> None:
    assert table().image_seconds(steps=3, tokens=100, rows=1, pixels=10_000) == pytest.approx(3.5)


def test_new_observations_move_what_is_known_by_their_weight() -> None:
    times = table()
    times.observe_step(100, 1, 2.0)
    assert times.step_seconds(100) == pytest.approx(1.0 + SMOOTHING)


def test_it_survives_its_way_through_a_heartbeat() -> None:
    copy = StepTimes.from_table(table().to_table())
    assert copy.to_table() == table().to_table()
    assert copy.step_seconds(200) == table().step_seconds(200)


def test_a_step_with_a_controlnet_takes_as_much_longer_as_its_blocks_say() -> None:
    times = table()
    times.expect("lines", 1.5)
    assert times.step_seconds(200, controlnet="lines") == pytest.approx(1.5 * 1.5)
    times.observe_step(200, 2, 1.5 * 4.0, "lines")  # nothing of this size was measured without one
    assert times.step_seconds(200, 2) == pytest.approx(4.0)
    assert times.step_seconds(200, 2, "nobody's") == times.step_seconds(200, 2)
    drawn = times.image_seconds(steps=3, tokens=100, rows=1, pixels=10_000, encoded=1, controlnet="lines")
    assert drawn == pytest.approx(3 * 1.5 + 1.5 * 0.5)


def test_then_as_measured_and_never_less_than_one_without() -> None:
    times = table()
    times.expect("lines", 1.5)
    times.observe_step(100, 1, 2.0, "lines")
    assert times.factor("lines") == pytest.approx(1.5 + SMOOTHING * (2.0 - 1.5))
    assert times.step_seconds(100) == 1.0, "that is no news of steps without one"
    for _ in range(100):
        times.observe_step(100, 1, 0.5, "lines")
    assert times.factor("lines") == pytest.approx(1.0)
    copy = StepTimes.from_table(times.to_table())
    assert (copy.to_table(), copy.factor("lines")) == (times.to_table(), times.factor("lines"))


@given(image=st.integers(16, 20_000), prompt=st.integers(1, 512))
def test_both_parts_of_a_sequence_are_padded(image: int, prompt: int) -> None:
    tokens = sequence_tokens(image, prompt)
    assert tokens % 32 == 0
    assert image + prompt <= tokens < image + prompt + 64
