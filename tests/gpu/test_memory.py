"""The card's own memory: `vram_limit`, what is refused by it, and an allocation that fails in a step."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import torch

from serve.engine.engine import Engine
from serve.engine.flight import Drawn
from serve.engine.open import Placement, open_engine
from serve.errors import ConfigError, TooLargeForMemory
from serve.messages import Phase, ReplicaState
from serve.settings import EMBEDDED_FOLDER, Settings
from tests.unit.test_engine import generation, ignore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STATE = ReplicaState(replica_id="d", role="denoiser", phase=Phase.READY)


@pytest.fixture
def limited() -> Iterator[Engine]:
    """What the tests before have left is in the way of a limit on the whole process: the limit is above it."""
    gc.collect()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 400 * (1 << 20)
    settings = Settings(vram_limit=limit, max_side_px=2048, warmup_sizes_px=(64, 256, 512))
    engine = open_engine(settings, EMBEDDED_FOLDER, Placement.choose(settings))
    yield engine
    engine.stop()
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


async def test_a_low_limit_is_kept_and_said(limited: Engine) -> None:
    state = limited.report(STATE, cap_px=2048)
    assert state.vram_total is not None
    assert state.vram_reserved is not None
    assert state.vram_reserved <= state.vram_total
    assert state.max_px is not None, "2048 px do not fit into 400 MiB"
    assert 64 <= state.max_px < 2048
    with pytest.raises(TooLargeForMemory, match="2048x2048"):
        await limited.draw(generation(height=2048, width=2048, deadline=time.monotonic() + 60), ignore)
    side = state.max_px
    drawn = await limited.draw(generation(height=side, width=side, deadline=time.monotonic() + 60), ignore)
    assert drawn.pixels.shape == (side, side, 3), "what is said to fit does"
    assert torch.cuda.memory_reserved() <= state.vram_total


async def test_memory_that_somebody_else_takes_costs_one_picture_and_no_engine(limited: Engine) -> None:
    side = limited.report(STATE, cap_px=2048).max_px or 512
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    vram = limited.memory.vram()
    assert vram is not None
    torch.cuda.set_per_process_memory_fraction((vram.reserved + (16 << 20)) / total)  # as if the card were fuller
    with pytest.raises(Exception, match="memory ran out"):
        await limited.draw(generation("large", height=side, width=side), ignore)
    torch.cuda.set_per_process_memory_fraction(vram.total / total)
    assert isinstance(await limited.draw(generation("after"), ignore), Drawn)
    assert not limited.lost


def test_weights_over_the_limit_stop_the_start() -> None:
    torch.cuda.empty_cache()
    settings = Settings(vram_limit=torch.cuda.memory_reserved() + (2 << 20), warmup_sizes_px=(64,))
    try:
        with pytest.raises(ConfigError, match="do not fit"):
            open_engine(settings, EMBEDDED_FOLDER, Placement.choose(settings))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
