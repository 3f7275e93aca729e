"""Two models in one service, each with its own deployments and engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serve.messages import JobStatus, Queued, Succeeded
from serve.settings import Settings
from tests.wiring.conftest import Wire, draw, service_of, submitted

TURBO, BASE = "z-image-turbo", "z-image-base"
WAITING = 12


async def test_a_backlog_of_one_model_is_none_of_the_others(wire: Wire, tmp_path: Path) -> None:
    handles = wire(Settings(data=tmp_path, warmup_sizes_px=(64,), models={BASE: {"default_steps": 28}}))
    assert set(handles) == {
        *("Gateway", "Dispatcher", "TextEncoder", "Denoiser"),
        *(f"TextEncoder-{BASE}", f"Denoiser-{BASE}"),
    }
    async with service_of(handles) as service:
        behind = [
            await submitted(service, model=BASE, steps=50, guidance=4.0, width=256, height=256, seed=seed)
            for seed in range(WAITING)
        ]
        events = await draw(service)
        waiting = [await service.get(job_id) for job_id in behind]
        replicas = (await service.stats()).replicas
        await asyncio.gather(*(service.cancel(job_id) for job_id in behind))
    first, *_ = events
    assert isinstance(first, Queued)
    assert (first.position, first.length) == (1, 1)
    assert first.eta_seconds is not None
    assert isinstance(events[-1], Succeeded)
    assert any(view.status is JobStatus.QUEUED for view in waiting)
    held = {(view.state.model, view.state.role): view.placed for view in replicas}
    assert set(held) == {(model, role) for model in (TURBO, BASE) for role in ("text_encoder", "denoiser")}
    assert held[BASE, "denoiser"] > 0
    assert held[TURBO, "denoiser"] == 0
