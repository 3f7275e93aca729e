"""The process that turns prompts into embeddings, batched by Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from ray import serve

from deployments import nodes
from deployments.replica import Membership, replica_id
from serve.messages import Phase, ReplicaState
from serve.settings import Settings

if TYPE_CHECKING:  # heavy imports belong to the replica, not to the process that wires the application
    from serve.engine.text import Embedding

P = ParamSpec("P")
R = TypeVar("R")
WARM_UP = ["a", "a red fox on a yellow background " * 20]


class TextEncoder:
    async def __init__(self, settings: Settings, folder: Path, node: str | None = None) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        nodes.stay(node)
        from serve.engine.identity import identity_of  # noqa: PLC0415
        from serve.engine.open import Placement, open_text_encoder  # noqa: PLC0415

        placement = Placement.of_text(settings)
        state = ReplicaState(
            replica_id=replica_id(),
            model=settings.served_model_name,
            role="text_encoder",
            phase=Phase.LOADING,
            device=str(placement),
        )
        self._membership = membership = Membership(settings, state)
        self._model = settings.served_model_name
        self._device = ThreadPoolExecutor(1, "device")
        self._idle = asyncio.Event()
        self._idle.set()
        self._encoder = await self._on_device(open_text_encoder, settings, folder, placement)
        membership.progress(Phase.WARMING_UP)
        await self._on_device(self._encoder.encode, WARM_UP)
        self._encode.set_max_batch_size(settings.scheduler.encode_batch)
        identity = await asyncio.to_thread(identity_of, folder, str(placement))
        membership.ready(replace(state, engine=identity), lambda state: state)

    async def __del__(self) -> None:
        """Called by Ray Serve when it has stopped this replica, and its prompts are encoded."""
        await self._membership.leave()

    async def encode(self, prompt: str) -> Embedding:
        """One prompt's embedding [L, C]. Callers wait here while the device is busy, and so enter the next batch
        together: Ray Serve forms batches eagerly and never merges those that wait."""
        if (known := self._encoder.find(prompt)) is not None:
            return known
        while not self._idle.is_set():
            await self._idle.wait()
        embedding: Embedding = await self._encode(prompt)
        return embedding

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _encode(self, prompts: list[str]) -> list[Embedding]:
        self._idle.clear()
        self._membership.recorder.observe("zimage_batch_size", len(prompts), self._model, "encode")
        try:
            return await self._on_device(self._encoder.encode, prompts)
        finally:
            self._idle.set()

    async def _on_device(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._device, lambda: work(*args, **kwargs))
