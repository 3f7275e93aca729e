"""ControlNets among other requests of a running service: which rows share a step, and what is loaded when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor
from ulid import ULID

from serve.engine.zimage import Row, ZImageTransformer
from serve.local import LocalService, open_service
from serve.messages import ImageRequest, Submission, Succeeded, Terminal
from serve.settings import Settings
from tests import control_files
from tests.exactness import inputs

PLAIN = ImageRequest(model="z-image-turbo", prompt="a red fox", width=64, height=64, steps=6, seed=1)
Rows = set[tuple[str, float, str] | None]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[LocalService]:
    folders = {name: str(control_files.write(tmp_path / name, name)) for name in ("plain", "own", "bare")}
    options = {
        "data": tmp_path / "data",
        "warmup_sizes_px": (64,),
        "presets": None,
        "controlnets": folders,
        "controlnet_bytes": "12MB",  # of two
        "scheduler": {"policy": "round_robin"},  # alike share a step whether it pays here or not
    }
    async with open_service(Settings.model_validate(options)) as service:
        yield service


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[set[str | None]]:
    """The names of each step's ControlNets."""
    seen: list[set[str | None]] = []
    segments = ZImageTransformer.segments

    def watched(self: ZImageTransformer, rows: list[Row], parts: int) -> Iterator[Tensor]:
        seen.append({row.control and row.control.net.name for row in rows})
        sizes.append(len(rows))
        return segments(self, rows, parts)

    sizes: list[int] = []
    monkeypatch.setattr(ZImageTransformer, "segments", watched)
    return seen


def controlled(name: str, seed: int, scale: float = 0.8) -> ImageRequest:
    picture = inputs.picture(seed % 3, 64, 64)
    return replace(PLAIN, seed=seed, controlnet=name, control_image=picture, controlnet_conditioning_scale=scale)


async def draw(service: LocalService, request: ImageRequest) -> Terminal:
    job_id = str(ULID())
    for name in request.inputs:
        await service.assets.write_input(name, inputs.KNOWN[name].data)
    await service.submit(Submission(job_id=job_id, request=request, prompt_tokens=20))
    async for event in service.watch(job_id):
        if isinstance(event, Terminal):
            return event
    raise AssertionError("the events ended without a terminal one")


async def test_a_step_has_one_controlnet_or_none(service: LocalService, steps: list[set[str | None]]) -> None:
    asked = [PLAIN, controlled("plain", 2), controlled("own", 3), controlled("plain", 4, 1.5), replace(PLAIN, seed=5)]
    ends = await asyncio.gather(*(draw(service, request) for request in asked))
    assert all(isinstance(end, Succeeded) for end in ends)
    assert all(len(names) == 1 for names in steps)
    assert {name for names in steps for name in names} == {None, "plain", "own"}


async def test_pictures_and_scales_of_one_controlnet_share_steps(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deterministic: the step loop waits at a gate until all of them are aboard."""
    engine, gate, together = service.backend.generator.engine, threading.Event(), list[int]()  # type: ignore[attr-defined]
    segments, receive = ZImageTransformer.segments, type(engine)._receive

    def watched(self: ZImageTransformer, rows: list[Row], parts: int) -> Iterator[Tensor]:
        together.append(len({row.control.strength.item() for row in rows if row.control}))
        return segments(self, rows, parts)

    def all_aboard(self: object) -> None:
        receive(engine)
        while not gate.is_set() and engine._flights:
            gate.set() if len(engine._flights) == 3 else receive(engine)

    monkeypatch.setattr(ZImageTransformer, "segments", watched)
    monkeypatch.setattr(type(engine), "_receive", all_aboard)
    asked = [controlled("plain", seed, scale) for seed, scale in ((1, 0.3), (2, 0.8), (3, 1.2))]
    ends = await asyncio.gather(*(draw(service, request) for request in asked))
    assert all(isinstance(end, Succeeded) for end in ends)
    assert set(together) == {3}


async def test_the_least_recently_used_one_goes(service: LocalService) -> None:
    controlnets = service.backend.generator.controlnets  # type: ignore[attr-defined]
    for seed, name in enumerate(("plain", "bare", "plain", "own")):
        assert isinstance(await draw(service, controlled(name, seed)), Succeeded)
        assert name in controlnets._held
        assert controlnets.nbytes <= 12_000_000
    assert "bare" not in controlnets._held
