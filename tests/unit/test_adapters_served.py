"""Adapters among other requests of a running service: nobody else waits for a load, and no step is shared by two."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from ulid import ULID

from serve.adapters import AdapterFile
from serve.engine.adapters import Adapters
from serve.engine.lora import Adapter
from serve.engine.open import open_adapters
from serve.engine.zimage import Row, ZImageTransformer
from serve.local import LocalService, open_service
from serve.messages import ImageRequest, Submission, Succeeded, Terminal
from serve.settings import Settings
from tests import adapter_files

PLAIN = ImageRequest(model="z-image-turbo", prompt="a red fox", width=64, height=64, steps=4, seed=1)


class Gate:
    """Loads wait at it while it is shut."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()

    def opening(self, *args: Any) -> Adapters:
        adapters = open_adapters(*args)
        load = adapters.load

        def gated(file: AdapterFile) -> Adapter:
            self.reached.set()
            assert self.open.wait(60)
            return load(file)

        adapters.load = gated
        return adapters


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr("serve.local.open_adapters", gate.opening)
    return gate


@pytest.fixture
async def service(gate: Gate, tmp_path: Path) -> AsyncIterator[LocalService]:
    files = {
        name: str(adapter_files.diffusers(tmp_path / f"{name}.safetensors", seed)) for seed, name in enumerate("ab")
    }
    options = {"data": tmp_path / "data", "warmup_sizes_px": (64,), "adapters": files, "presets": None}
    async with open_service(Settings.model_validate(options)) as service:
        yield service


async def draw(service: LocalService, request: ImageRequest) -> Terminal:
    job_id = str(ULID())
    await service.submit(Submission(job_id=job_id, request=request, prompt_tokens=20))
    async for event in service.watch(job_id):
        if isinstance(event, Terminal):
            return event
    raise AssertionError("the events ended without a terminal one")


async def test_others_are_drawn_while_an_adapter_is_loaded(gate: Gate, service: LocalService) -> None:
    gate.open.clear()
    waiting = asyncio.create_task(draw(service, replace(PLAIN, adapter="a")))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    assert isinstance(await asyncio.wait_for(draw(service, PLAIN), 30), Succeeded)
    assert not waiting.done()
    gate.open.set()
    assert isinstance(await asyncio.wait_for(waiting, 30), Succeeded)


async def test_one_that_leaves_while_it_waits_leaves_nothing_behind(gate: Gate, service: LocalService) -> None:
    gate.open.clear()
    job_id = str(ULID())
    await service.submit(Submission(job_id=job_id, request=replace(PLAIN, adapter="a"), prompt_tokens=20))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    await service.cancel(job_id)
    gate.open.set()
    assert isinstance(await asyncio.wait_for(draw(service, replace(PLAIN, adapter="a")), 30), Succeeded)


async def test_a_step_has_one_adapter_at_one_scale(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[set[tuple[str, float] | None]] = []
    segments = ZImageTransformer.segments

    def watched(self: ZImageTransformer, rows: list[Row], parts: int) -> Iterator[Tensor]:
        steps.append({row.extension and (row.extension.adapter.name, row.extension.strength.item()) for row in rows})
        return segments(self, rows, parts)

    monkeypatch.setattr(ZImageTransformer, "segments", watched)
    chosen = [(None, 1.0), ("a", 1.0), ("a", 0.5), ("b", 1.0)]
    asked = [
        replace(PLAIN, seed=10 * at + copy, adapter=name, adapter_scale=scale)
        for copy in range(3)
        for at, (name, scale) in enumerate(chosen)
    ]
    ends = await asyncio.gather(*(draw(service, request) for request in asked))
    assert all(isinstance(end, Succeeded) for end in ends)
    assert all(len(step) == 1 for step in steps)
    assert {one for step in steps for one in step} == {None, ("a", 1.0), ("a", 0.5), ("b", 1.0)}
