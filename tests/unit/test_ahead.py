"""Launching ahead: when the next work is due, what is told and when, and that the pictures are the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from serve.engine import engine as loop
from serve.engine.ahead import LEAD_S, LOOK_EVERY_S, Ahead, Instant
from serve.engine.engine import Engine
from serve.engine.open import Placement, open_engine
from serve.settings import EMBEDDED_FOLDER, Settings
from tests.unit.test_engine import generation, ignore


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class At(Instant):
    """On a device that is there when the clock is."""

    clock: Clock
    at: float
    waits: list[float] = field(default_factory=list)

    def reached(self) -> bool:
        return self.clock.now >= self.at

    def wait(self) -> None:
        self.waits.append(self.at)
        self.clock.now = max(self.clock.now, self.at)

    def seconds_since(self, earlier: Instant) -> float:
        assert isinstance(earlier, At)
        return self.at - earlier.at


def test_the_next_work_is_due_before_the_device_runs_dry() -> None:
    clock = Clock()
    ahead = Ahead(clock, asynchronous=True)
    assert ahead.leisure_s() == 0
    ahead.add(At(clock, 100.0), At(clock, 100.09), 0.09, lambda _: None)
    assert ahead.leisure_s() == LOOK_EVERY_S
    clock.now = 100.0 + 0.09 - LEAD_S - 0.001
    assert ahead.leisure_s() == pytest.approx(0.001)
    clock.now += 0.002
    assert ahead.leisure_s() == 0


def test_a_device_that_is_faster_than_expected_is_noticed() -> None:
    clock = Clock()
    ahead = Ahead(clock, asynchronous=True)
    ahead.add(At(clock, 100.0), At(clock, 100.01), 1.0, lambda _: None)
    clock.now = 100.02
    assert ahead.leisure_s() == 0


def test_what_was_done_is_told_in_order_with_the_time_of_the_device() -> None:
    clock, told = Clock(), list[tuple[str, float]]()
    ahead = Ahead(clock, asynchronous=True)
    ahead.add(At(clock, 100.0), At(clock, 101.0), 1.0, lambda seconds: told.append(("first", seconds)))
    ahead.add(At(clock, 101.0), At(clock, 103.0), 1.0, lambda seconds: told.append(("second", seconds)))
    ahead.tell(1)
    assert (told, clock.now, len(ahead)) == ([("first", 1.0)], 101.0, 1)
    ahead.tell(1)
    assert told[1:] == [("second", 2.0)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    placement = Placement(torch.device("cpu"), torch.float32)
    engine = open_engine(Settings(warmup_sizes_px=(64,)), EMBEDDED_FOLDER, placement)
    yield engine
    engine.stop()


async def crowd(engine: Engine) -> list[tuple[bytes, list[tuple[int, bool]]]]:
    async def one(seed: int, side: int) -> tuple[bytes, list[tuple[int, bool]]]:
        told = list[tuple[int, bool]]()
        asked = generation(f"{seed}", seed=seed, height=side, width=side, preview_steps=frozenset({2}), alone=True)
        drawn = await engine.draw(asked, lambda step, preview: told.append((step, preview is not None)))
        assert drawn.denoise_s > 0
        assert drawn.executions == pytest.approx(1.0)
        return np.ascontiguousarray(drawn.pixels).tobytes(), told

    return await asyncio.gather(*(one(seed, side) for seed, side in enumerate((64, 96, 64, 128))))


async def test_pictures_and_what_is_told_are_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = await crowd(engine)
    monkeypatch.setattr(engine._ahead, "asynchronous", True)
    assert await crowd(engine) == at_once
    assert at_once[0][1] == [(0, False), (1, False), (2, True), (3, False), (4, False)]


async def test_a_device_that_breaks_while_work_is_under_way_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(At):
        def wait(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    placement = Placement(torch.device("cpu"), torch.float32)
    engine = open_engine(Settings(warmup_sizes_px=(64,)), EMBEDDED_FOLDER, placement)
    monkeypatch.setattr(loop, "instant", lambda _: Broken(Clock(), 0.0))
    with pytest.raises(loop.DeviceLost):
        await engine.draw(generation(), ignore)
    assert engine.lost
    engine.stop()
