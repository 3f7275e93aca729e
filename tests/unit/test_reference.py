"""Pictures that begin with another: the steps they take, what is counted for them, what memory they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.engine import Engine
from serve.engine.flight import Drawn
from serve.engine.open import Placement, open_engine
from serve.engine.reference import Reference, begin
from serve.errors import TooLargeForMemory
from serve.jobs.cache import key_of
from serve.jobs.estimate import solo_seconds
from serve.messages import ImageRequest, Submission
from serve.settings import EMBEDDED_FOLDER, Settings
from serve.step_times import StepTimes
from tests.unit.test_engine import generation, ignore

TEXT = ImageRequest(model="m", prompt="a fox", width=64, height=64, steps=8, seed=1)
PIXELS = np.full((64, 64, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    settings = Settings(warmup_sizes_px=(64,))
    engine = open_engine(settings, EMBEDDED_FOLDER, Placement(torch.device("cpu"), torch.float32))
    yield engine
    engine.stop()


class _Pipeline:
    """As much of diffusers' as `get_timesteps` asks for."""

    def __init__(self, steps: int) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.scheduler.set_timesteps(steps)


@given(steps=st.integers(1, 50), strength=st.floats(0.01, 1.0))
def test_as_many_steps_are_taken_as_diffusers_takes(steps: int, strength: float) -> None:
    timesteps, taken = ZImageImg2ImgPipeline.get_timesteps(_Pipeline(steps), steps, strength, "cpu")
    ours = replace(TEXT, steps=steps, strength=strength).steps_taken
    assert ours == taken == len(timesteps) >= 1


def test_quotas_and_estimates_count_the_steps_taken() -> None:
    half = replace(TEXT, image="a" * 64, strength=0.5, n=2)
    assert half.amount.pixel_steps == 64 * 64 * 4 * 2
    assert replace(half, guidance=5.0).amount.pixel_steps == 64 * 64 * 4 * 2 * 2
    times = StepTimes.from_table({"step_1": {"96": 1.0}, "decode": {"4096": 0.25}})
    assert solo_seconds(Submission(job_id="j", request=TEXT, prompt_tokens=32), times) == 8.25
    assert solo_seconds(Submission(job_id="j", request=half, prompt_tokens=32), times) == 2 * (4 + 1.5 * 0.25)


def test_cache_keys_of_text_are_what_they_were_and_inputs_make_others() -> None:
    keys = [key_of(TEXT, "engine")]
    assert keys == ["fba03017c5f41f399e5ba383b334e29c4d199ad13fa4506b32843d27239434ea"]
    begun = replace(TEXT, image="a" * 64, strength=0.5)
    changes = ({}, {"image": "b" * 64}, {"strength": 0.6}, {"mask": "c" * 64})
    keys += [key_of(replace(begun, **change), "engine") for change in changes]
    assert len(set(keys)) == 5


async def test_steps_are_told_as_they_are_taken(engine: Engine) -> None:
    told: list[tuple[int, bool]] = []
    asked = generation(
        steps=8, skipped=5, preview_steps=frozenset({2}), reference=Reference("fox", PIXELS, PIXELS[..., 0])
    )
    drawn = await engine.draw(asked, lambda step, preview: told.append((step, preview is not None)))
    assert told == [(0, False), (1, False), (2, True), (3, False)]
    assert drawn.executions == pytest.approx(1.0)


async def test_pictures_of_one_job_are_encoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, encoded = engine.decoder.encoder, list[int]()
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: encoded.append(1) or encode(pixels))
    for seed in (1, 2):
        await engine.draw(generation(str(seed), seed=seed, skipped=3, reference=Reference("cat", PIXELS)), ignore)
    await engine.draw(generation("3", skipped=3, reference=Reference("dog", PIXELS)), ignore)
    assert len(encoded) == 2


async def test_one_waits_for_memory_that_another_gives_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a paused step: it is not lost, and leaves when its caller does."""
    reserve, refusals = engine.memory.reserve, 3

    def reluctant(needed: int) -> bool:
        nonlocal refusals
        if needed == 77:
            refusals -= 1
            return refusals < 0
        return reserve(needed)

    monkeypatch.setattr(engine.memory, "encode_bytes", lambda pixels: 77)
    monkeypatch.setattr(engine.memory, "reserve", reluctant)
    one = generation("one", skipped=3, reference=Reference("fox", PIXELS))
    drawn, beside = await asyncio.gather(engine.draw(one, ignore), engine.draw(generation("beside", steps=8), ignore))
    assert isinstance(drawn, Drawn)
    assert isinstance(beside, Drawn)
    refusals = 10**9
    waiting = asyncio.create_task(engine.draw(one, ignore))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await engine.draw(generation("after"), ignore)
    assert not engine._ashore


async def test_what_can_be_drawn_but_not_encoded_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.memory, "encode_bytes", lambda pixels: pixels)
    monkeypatch.setattr(engine.memory, "fits", lambda needed: needed <= 48 * 48)
    monkeypatch.setattr(engine.memory, "check", lambda shape: None)
    with pytest.raises(TooLargeForMemory, match="64x64") as refusal:
        await engine.draw(generation(skipped=1, reference=Reference("fox", PIXELS)), ignore)
    assert "48x48" in str(refusal.value.hint)


def test_an_encoding_without_memory_is_tried_again_once_it_is_freed() -> None:
    reference, freed, tries = Reference("fox", PIXELS), list[int](), list[int]()

    def encoded(reference: Reference) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError
        return "begun"

    assert begin(reference, lambda: pytest.fail("noise"), encoded, lambda: freed.append(1)) == "begun"  # type: ignore[arg-type,comparison-overlap]
    assert (len(tries), freed) == (2, [1])
