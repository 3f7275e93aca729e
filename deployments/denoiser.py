"""The process that owns a GPU: the step loop, files, and the asset store."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from deployments import nodes
from deployments.replica import Membership, replica_id
from serve import logs
from serve.assets.open import open_assets
from serve.messages import Generated, Phase, ReplicaState, Task
from serve.settings import Settings

if TYPE_CHECKING:  # heavy imports belong to the replica, not to the process that wires the application
    from serve.engine.engine import Engine
    from serve.engine.text import Embedding

STUCK_S = 120.0  # far longer than any step; a device that answers nothing for so long is lost


class Denoiser:
    async def __init__(self, settings: Settings, folder: Path, node: str | None = None) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        nodes.stay(node)
        from serve.engine.generator import Generator  # noqa: PLC0415
        from serve.engine.gpu import gpu_of  # noqa: PLC0415
        from serve.engine.identity import identity_of  # noqa: PLC0415
        from serve.engine.open import Placement, open_adapters, open_controlnets, open_engine  # noqa: PLC0415

        placement = Placement.choose(settings)
        state = ReplicaState(
            replica_id=replica_id(),
            model=settings.served_model_name,
            role="denoiser",
            phase=Phase.LOADING,
            device=str(placement),
            slots=settings.scheduler.window,
        )
        self._membership = Membership(settings, state)
        adapters = await asyncio.to_thread(open_adapters, settings, folder, placement)
        controlnets = await asyncio.to_thread(open_controlnets, settings, folder, placement)
        self._engine: Engine = await asyncio.to_thread(
            open_engine,
            settings,
            folder,
            placement,
            lambda done: self._membership.progress(Phase.WARMING_UP, done),
            adapters.most_bytes + controlnets.most_bytes,
        )
        adapters.recorder = controlnets.recorder = self._membership.recorder
        await adapters.preload()
        await controlnets.preload()
        self._engine.recorder = self._membership.recorder
        self._gpu = gpu_of(placement.device)
        self._cap_px = settings.cap_px
        files = ThreadPoolExecutor(2, "files")
        self._generator = Generator(self._engine, open_assets(settings), files, settings, adapters, controlnets)
        identity = await asyncio.to_thread(identity_of, folder, str(placement))
        self._membership.ready(replace(state, engine=identity), self._measured)

    async def generate(self, task: Task, embedding: Embedding, negative: Embedding | None = None) -> Generated:
        """Answers once, when the picture is stored; a cancelled call stops it at the next step."""
        with structlog.contextvars.bound_contextvars(**logs.origin(task)):
            return await self._generate(task, embedding, negative)

    async def _generate(self, task: Task, embedding: Embedding, negative: Embedding | None) -> Generated:
        try:
            generated = await self._generator.generate(task, embedding, negative, self._membership.report)
            if task.previews:
                await self._membership.flush()  # they must not arrive after the picture that they announce
        finally:
            self._membership.settle(task.id)
        return generated

    async def __del__(self) -> None:
        """Called by Ray Serve when it has stopped this replica, and its pictures are done."""
        await self._membership.leave()

    async def check_health(self) -> None:
        if self._engine.lost:
            raise RuntimeError("the device is lost")
        silent_s = self._engine.silent_s()
        if silent_s > STUCK_S:
            self._membership.lost()
            raise RuntimeError(f"the engine has not moved for {silent_s:.0f} s")

    def _measured(self, state: ReplicaState) -> ReplicaState:
        return replace(self._generator.report(state, self._cap_px), gpu=self._gpu.state() if self._gpu else None)
