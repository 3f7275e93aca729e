"""Every served picture equals diffusers' for the same seed within 1/255, alone and in crowds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.engine.schedule import POLICIES
from serve.messages import ImageRequest
from serve.settings import Settings
from tests.exactness import inputs
from tests.exactness.crowd import Crowd, Visitor
from tests.exactness.reference import draw

CROWD = 5  # of which one may leave early
CROWDS = int(os.environ.get("ZIMAGE_EXACTNESS_CROWDS", "3"))
TOLERANCE = 1  # of 255

words = st.sampled_from(
    ["a red fox", "two cats", "a slice of pizza", "on a blue background", "in the snow", "猫", "🦊", "?"]
)
short_prompts = st.lists(words, min_size=1, max_size=6).map(" ".join)
long_prompts = st.integers(8, 165).map(lambda n: "a cat and " * n)  # to 500 tokens
sides = st.sampled_from([64, 80, 96, 128, 144, 160, 192, 256])


@st.composite
def requests(draw_: st.DrawFn) -> ImageRequest:
    guidance = draw_(st.sampled_from([0.0, 0.0, 5.0]))
    width, height = draw_(sides), draw_(sides)
    return ImageRequest(
        model="z-image-turbo",
        prompt=draw_(st.one_of(short_prompts, short_prompts, long_prompts)),
        negative_prompt=draw_(st.one_of(st.just(""), short_prompts, long_prompts)) if guidance else "",
        width=width,
        height=height,
        steps=draw_(st.integers(1, 12)),
        guidance=guidance,
        seed=draw_(st.integers(0, 2**53 - 1)),
        cfg_normalization=draw_(st.sampled_from([0.0, 0.0, 0.9, 1.2])) if guidance else 0.0,
        cfg_truncation=draw_(st.sampled_from([1.0, 1.0, 0.25, 0.7])) if guidance else 1.0,
        **draw_(beginnings(width, height)),
    )


@st.composite
def beginnings(draw_: st.DrawFn, width: int, height: int) -> dict[str, Any]:
    """Noise, a picture, or a picture of which a part is drawn anew."""
    kind, seed = draw_(st.sampled_from(["text", "image", "mask"])), draw_(st.integers(0, 3))
    if kind == "text":
        return {}
    begins_with = {"image": inputs.picture(seed, width, height), "strength": draw_(st.floats(0.01, 1.0))}
    return begins_with if kind == "image" else begins_with | {"mask": inputs.mask(seed, width, height)}


@st.composite
def crowds(draw_: st.DrawFn) -> list[Visitor]:
    arrivals = st.sampled_from([0.0, 0.0, 0.03, 0.1, 0.3])
    leaving = Visitor(draw_(requests()), draw_(arrivals), draw_(st.sampled_from([0.0, 0.02, 0.1, 0.25])))
    return [leaving] + [Visitor(draw_(requests()), draw_(arrivals)) for _ in range(CROWD - 1)]


@contextmanager
def crowd_under(policy: str, data: Path) -> Iterator[Crowd]:
    options = {"data": data, "warmup_sizes_px": (64, 128), "scheduler": {"policy": policy, "split_step_ms": 1}}
    crowd = Crowd(Settings.model_validate(options))
    yield crowd
    crowd.close()


@pytest.fixture(scope="module", params=POLICIES)
def crowd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with crowd_under(request.param, tmp_path_factory.mktemp("data")) as crowd:
        yield crowd


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """For one picture at a time, where a policy has nothing to choose."""
    with crowd_under("edf", tmp_path_factory.mktemp("data")) as crowd:
        yield crowd


def equal(picture: np.ndarray, request: ImageRequest) -> None:
    difference = np.abs(picture.astype(int) - draw(request).astype(int)).max()
    assert difference <= TOLERANCE, f"{difference} of 255 off for {request}"


@settings(
    max_examples=CROWDS,
    deadline=None,
    derandomize="ZIMAGE_EXACTNESS_CROWDS" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(visitors=crowds())
def test_every_picture_of_a_crowd_equals_diffusers(crowd: Crowd, visitors: list[Visitor]) -> None:
    pictures = crowd.serve(visitors)
    assert all(picture is not None for picture in pictures[1:])
    for visitor, picture in zip(visitors, pictures, strict=True):
        if picture is not None:
            equal(picture, visitor.request)


@pytest.mark.parametrize("masked", [False, True], ids=["image to image", "inpaint"])
@pytest.mark.parametrize("guidance", [0.0, 5.0])
@pytest.mark.parametrize("strength", [0.01, 0.6, 1.0])
def test_a_picture_that_begins_with_another_equals_diffusers(
    alone: Crowd, masked: bool, guidance: float, strength: float
) -> None:
    request = ImageRequest(
        model="z-image-turbo",
        prompt="a red fox on a yellow background",
        negative_prompt="a blue cat",
        width=128,
        height=96,
        steps=8,
        guidance=guidance,
        seed=7,
        image=inputs.picture(1, 128, 96),
        mask=inputs.mask(1, 128, 96) if masked else None,
        strength=strength,
    )
    (picture,) = alone.serve([Visitor(request)])
    assert picture is not None
    equal(picture, request)


def test_text_and_pictures_share_steps(crowd: Crowd) -> None:
    """Of one shape: they differ in their latents and the step that they are at, and in nothing else."""
    text = ImageRequest(model="z-image-turbo", prompt="a red fox", width=64, height=64, steps=9, seed=1)
    image = replace(text, image=inputs.picture(2, 64, 64), strength=0.7)
    masked = replace(image, mask=inputs.mask(2, 64, 64), strength=0.9)
    visitors = [Visitor(request) for request in (text, image, masked, replace(image, seed=2))]
    for visitor, picture in zip(visitors, crowd.serve(visitors), strict=True):
        assert picture is not None
        equal(picture, visitor.request)


@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_one_picture_alone_equals_diffusers(alone: Crowd, guidance: float) -> None:
    request = ImageRequest(
        model="z-image-turbo",
        prompt="a red fox on a yellow background",
        negative_prompt="a blue cat",
        width=128,
        height=128,
        steps=8,
        guidance=guidance,
        seed=7,
    )
    (picture,) = alone.serve([Visitor(request)])
    assert picture is not None
    equal(picture, request)


@pytest.mark.parametrize("negative", ["a blue cat", "a blue cat " * 12], ids=["one forward", "two forwards"])
def test_fifty_guided_steps_equal_diffusers(alone: Crowd, negative: str) -> None:
    """As the base model is used; a negative prompt of another padded length takes a forward of its own."""
    request = ImageRequest(
        model="z-image-turbo",
        prompt="a red fox on a yellow background",
        negative_prompt=negative,
        width=64,
        height=80,
        steps=50,
        guidance=4.0,
        seed=11,
    )
    (picture,) = alone.serve([Visitor(request)])
    assert picture is not None
    equal(picture, request)


@pytest.mark.parametrize("truncation", [0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("normalization", [0.0, 0.8, 1.0])
def test_guidance_is_bounded_and_cut_off_as_by_diffusers(alone: Crowd, normalization: float, truncation: float) -> None:
    """At sigmas of the schedule, too, where rounding decides whether a step is guided."""
    request = ImageRequest(
        model="z-image-turbo",
        prompt="a red fox on a yellow background",
        negative_prompt="a blue cat",
        width=64,
        height=64,
        steps=8,
        guidance=5.0,
        seed=5,
        cfg_normalization=normalization,
        cfg_truncation=truncation,
    )
    (picture,) = alone.serve([Visitor(request)])
    assert picture is not None
    equal(picture, request)


@pytest.mark.parametrize("steps", [28, 50])
def test_the_base_models_settings_equal_diffusers(alone: Crowd, steps: int) -> None:
    request = ImageRequest(
        model="z-image-turbo",
        prompt="a red fox on a yellow background",
        width=64,
        height=64,
        steps=steps,
        guidance=4.0,
        seed=12,
        cfg_normalization=1.0,
        cfg_truncation=0.6,
    )
    (picture,) = alone.serve([Visitor(request)])
    assert picture is not None
    equal(picture, request)


def test_the_longest_prompt_equals_diffusers(alone: Crowd) -> None:
    fits = "a cat and " * 167 + "a"  # 510 tokens with the chat template
    request = ImageRequest(model="z-image-turbo", prompt=fits, width=64, height=96, steps=2, seed=3)
    assert 500 <= alone.tokens(fits) <= 512
    (picture,) = alone.serve([Visitor(request)])
    assert picture is not None
    equal(picture, request)
