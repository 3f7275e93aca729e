"""ControlNets among other requests of a running service: which rows share a step, and what is loaded when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from ulid import ULID

from serve.controlnets import FILES, ControlNetFile
from serve.engine.adapters import Adapters
from serve.engine.controlnet import ControlNet, load
from serve.engine.engine import Engine
from serve.engine.open import Placement, load_transformer, open_controlnets, open_engine
from serve.engine.zimage import Row, ZImageTransformer
from serve.local import LocalService, open_service
from serve.messages import ImageRequest, Phase, Queued, ReplicaState, Submission, Succeeded, Terminal
from serve.settings import EMBEDDED_FOLDER, Settings
from tests import control_files
from tests.exactness import inputs

PLAIN = ImageRequest(model="z-image-turbo", prompt="a red fox", width=64, height=64, steps=6, seed=1)
Shelf = Adapters[ControlNetFile, ControlNet]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Shelf]:
    """The service's ControlNets."""
    found: list[Shelf] = []

    def opening(*args: Any) -> Shelf:
        found.append(open_controlnets(*args))
        return found[0]

    monkeypatch.setattr("serve.local.open_controlnets", opening)
    return found


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    found: list[Engine] = []

    def opening(*args: Any, **more: Any) -> Engine:
        found.append(open_engine(*args, **more))
        return found[-1]

    monkeypatch.setattr("serve.local.open_engine", opening)
    return found


@pytest.fixture
async def service(opened: list[Shelf], engines: list[Engine], tmp_path: Path) -> AsyncIterator[LocalService]:
    folders = {name: str(control_files.write(tmp_path / name, name)) for name in ("plain", "own", "bare")}
    options = {
        "data": tmp_path / "data",
        "warmup_sizes_px": (64,),
        "presets": None,
        "controlnets": folders,
        "controlnet_bytes": "12MB",  # of two
        "timeouts": {"heartbeat_s": 60},
        "scheduler": {"policy": "round_robin"},  # alike share a step whether it pays here or not
    }
    async with open_service(Settings.model_validate(options)) as service:
        yield service


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[set[str | None]]:
    """The names of each step's ControlNets."""
    seen = list[set[str | None]]()
    segments = ZImageTransformer.segments

    def watched(self: ZImageTransformer, rows: list[Row], parts: int) -> Iterator[Tensor]:
        seen.append({row.control and row.control.net.name for row in rows})
        return segments(self, rows, parts)

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


async def eta(service: LocalService, request: ImageRequest) -> float:
    """As it was first told, of a job that is drawn to its end."""
    job_id, first = str(ULID()), None
    for name in request.inputs:
        await service.assets.write_input(name, inputs.KNOWN[name].data)
    await service.submit(Submission(job_id=job_id, request=request, prompt_tokens=20))
    async for event in service.watch(job_id):
        first = first or event
    assert isinstance(first, Queued)
    assert first.eta_seconds is not None
    return first.eta_seconds


async def test_it_is_told_to_take_longer_than_one_without(service: LocalService, engines: list[Engine]) -> None:
    """By its blocks at first, as heartbeats are a minute apart here; then as it was measured."""
    (engine,) = engines
    by_blocks = engine.times.factor("own")
    assert by_blocks > 1
    plain, lines = [await eta(service, request) for request in (PLAIN, controlled("own", 6))]
    assert plain * 1.01 < lines
    assert engine.times.factor("own") != by_blocks
    assert engine.times.factor("own") >= 1


@pytest.mark.parametrize("kind", control_files.KINDS)
def test_rows_of_one_controlnet_are_as_if_alone(tmp_path: Path, kind: str) -> None:
    """Whatever their pictures, scales, captions and steps are, and in how many parts the step is taken."""
    placement = Placement(torch.device("cpu"), torch.float32)
    folder = control_files.write(tmp_path / kind, kind)
    files = FILES.open(Settings.model_validate({"controlnets": {kind: str(folder)}}), EMBEDDED_FOLDER)
    net, transformer = (
        load(files[kind], placement.device, placement.dtype),
        load_transformer(EMBEDDED_FOLDER, placement),
    )
    generator = torch.Generator().manual_seed(1)
    schedule, rows = transformer.schedule(4, 20), list[Row]()
    for step, scale in enumerate((0.0, 0.7, 1.6)):
        caption = transformer.caption(torch.randn(20, transformer.embedding_size, generator=generator))
        control = transformer.control(net, torch.randn(16, 8, 10, generator=generator), scale, 4)
        noise = transformer.noise(step, 64, 80)
        rows.append(Row(noise, caption, schedule, step, 64, 80, control=control))
    together = transformer.velocity(rows)
    for row, velocity in zip(rows, together, strict=True):
        assert torch.allclose(transformer.velocity([row])[0], velocity, atol=1e-4)
    *_, in_parts = transformer.segments(rows, 3)
    assert torch.equal(in_parts, together)
    plain = transformer.velocity([replace(row, control=None) for row in rows])
    assert torch.allclose(plain[0], together[0], atol=1e-4)
    assert not torch.allclose(plain[1], together[1], atol=1e-2)


async def test_the_least_recently_used_one_goes(opened: list[Shelf], service: LocalService) -> None:
    (controlnets,) = opened
    for seed, name in enumerate(("plain", "bare", "plain", "own")):
        assert isinstance(await draw(service, controlled(name, seed)), Succeeded)
        assert name in held(controlnets)
        assert controlnets.nbytes <= 12_000_000
    assert "bare" not in held(controlnets)


def held(controlnets: Shelf) -> tuple[str, ...]:
    return controlnets.report(ReplicaState(replica_id="x", role="denoiser", phase=Phase.READY)).controlnets_held
