"""One task from embeddings to a stored picture: draw, encode a file, store it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from serve.adapters import AdapterFile
from serve.assets.metadata import describe, parameters
from serve.assets.store import AssetStore
from serve.controlnets import ControlNetFile
from serve.engine import codec
from serve.engine.adapters import Adapters, no_adapters, no_controlnets
from serve.engine.controlnet import ControlNet
from serve.engine.engine import Engine
from serve.engine.flight import Control, Generation
from serve.engine.lora import Adapter
from serve.engine.pixels import Pixels
from serve.engine.reference import Reference
from serve.engine.text import Embedding
from serve.errors import AssetCorrupted
from serve.inputs import unpacked
from serve.logs import origin
from serve.messages import (
    Generated,
    ImageRequest,
    ReplicaState,
    Span,
    Stage,
    StoredImage,
    Task,
    TaskPreview,
    TaskReport,
    TaskStepped,
)
from serve.settings import Settings

Report = Callable[[TaskReport], None]


@dataclass(slots=True)
class Generator:
    engine: Engine
    assets: AssetStore
    files: ThreadPoolExecutor
    settings: Settings
    adapters: Adapters[AdapterFile, Adapter] = field(default_factory=no_adapters)
    controlnets: Adapters[ControlNetFile, ControlNet] = field(default_factory=no_controlnets)

    def __post_init__(self) -> None:
        for file in self.controlnets.files.values():
            self.engine.times.expect(file.name, file.work)

    async def generate(self, task: Task, embedding: Embedding, negative: Embedding | None, report: Report) -> Generated:
        """Returns when the picture is in the asset store. Cancelling the caller stops it at the next step."""
        loop = asyncio.get_running_loop()
        previews = _Previews(self, task, report)

        def on_step(step: int, preview: Pixels | None) -> None:
            loop.call_soon_threadsafe(report, TaskStepped(task_id=task.id, step=step, at=time.time()))
            if preview is not None:
                loop.call_soon_threadsafe(previews.begin, preview)

        reference = None if task.request.control_inpaints else await self._begun(task.request)
        async with self._adapter(task.request) as adapter, self._control(task.request) as control:
            generation = self._generation(task, embedding, negative, reference, adapter, control)
            drawn = await self.engine.draw(generation, on_step)
        await previews.finish()
        began, filing = time.perf_counter(), time.time()
        image = await self._store(task, drawn.pixels)
        spans: dict[Stage, Span] = {
            "denoise": Span(drawn.started_at, drawn.denoised_at),
            "decode": drawn.decoding,
            "file": Span(filing, time.time()),
        }
        if (encoding := _together(embedding, negative)) is not None:
            spans["encode"] = encoding
        return Generated(
            image=image,
            started_at=drawn.started_at,
            encode_s=embedding.seconds,
            encodings=embedding.executions + (negative.executions if negative else 0.0),
            denoise_s=drawn.denoise_s,
            decode_s=drawn.decode_s,
            file_s=time.perf_counter() - began,
            executions=drawn.executions,
            tally=self.engine.recorder.drain(),
            spans=spans,
        )

    def report(self, state: ReplicaState, cap_px: int) -> ReplicaState:
        """What a heartbeat says of it; `cap_px` is the longest side that is served."""
        return self.controlnets.report(self.adapters.report(self.engine.report(state, cap_px)))

    def _adapter(self, request: ImageRequest) -> AbstractAsyncContextManager[Adapter | None]:
        """Waits here for one that has to be loaded, while the engine goes on with others."""
        return nullcontext() if request.adapter is None else self.adapters.lent(request.adapter)

    @asynccontextmanager
    async def _control(self, request: ImageRequest) -> AsyncIterator[Control | None]:
        if request.controlnet is None or request.control_image is None:
            yield None
            return
        picture = Reference(request.control_image, await self._input(request.control_image))
        masked = await self._begun(request) if request.control_inpaints else None
        async with self.controlnets.lent(request.controlnet) as net:
            yield Control(net, picture, request.controlnet_conditioning_scale, masked)

    async def _begun(self, request: ImageRequest) -> Reference | None:
        """The input pictures of a request that brings some to begin with. Raises AssetCorrupted."""
        if request.image is None:
            return None
        pixels = await self._input(request.image)
        return Reference(request.image, pixels, None if request.mask is None else await self._input(request.mask))

    async def _input(self, name: str) -> Pixels:
        data = await self.assets.read_input(name)
        if data is None:
            raise AssetCorrupted(f"the input picture {name[:16]} is gone", hint="send the picture again")
        return await asyncio.get_running_loop().run_in_executor(self.files, unpacked, name, data)

    def _generation(
        self,
        task: Task,
        embedding: Embedding,
        negative: Embedding | None,
        reference: Reference | None,
        adapter: Adapter | None,
        control: Control | None,
    ) -> Generation:
        request = task.request
        return Generation(
            id=task.id,
            height=request.height,
            width=request.width,
            steps=request.steps,
            seed=task.seed,
            embedding=embedding.tensor(),
            negative=None if negative is None else negative.tensor(),
            guidance=request.guidance,
            deadline=self.engine.clock() + task.deadline_in,
            hard_deadline=task.hard_deadline,
            alone=request.deterministic,
            preview_steps=preview_steps(request.steps_taken, task.previews),
            origin=origin(task),
            reference=reference,
            skipped=request.steps - request.steps_taken,
            adapter=adapter,
            adapter_scale=request.adapter_scale,
            control=control,
            cfg_normalization=request.cfg_normalization,
            cfg_truncation=request.cfg_truncation,
        )

    async def _store(self, task: Task, pixels: Pixels) -> StoredImage:
        request = task.request
        inside = parameters(request, task.image) if self.settings.assets.embed_parameters else None
        data = await self.in_files(
            lambda: codec.encode(pixels, request.output_format, request.output_compression, inside)
        )
        metadata = describe(request, task.image, job_id=task.job_id, user=task.user, weights=self.settings.model)
        await _to_its_end(self.assets.write(task.asset_id, data, request.output_format, metadata))
        return StoredImage(
            asset_id=task.asset_id,
            seed=task.seed,
            width=request.width,
            height=request.height,
            format=request.output_format,
            bytes=len(data),
        )

    async def in_files(self, work: Callable[[], bytes]) -> bytes:
        """Runs the encoding of a file off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.files, work)


def _together(*embeddings: Embedding | None) -> Span | None:
    """From the first to the last that was encoded; None where all were remembered."""
    spans = [embedding.encoding for embedding in embeddings if embedding is not None and embedding.encoding is not None]
    return Span(min(span.began for span in spans), max(span.ended for span in spans)) if spans else None


async def _to_its_end(writing: Coroutine[Any, Any, object]) -> None:
    """A caller that cancels knows, when it is answered, that no picture comes any more."""
    task = asyncio.ensure_future(writing)
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.gather(task, return_exceptions=True)


class _Previews:
    """Partial pictures of one task, encoded and stored in order, off the path of its steps."""

    def __init__(self, generator: Generator, task: Task, report: Report) -> None:
        self._generator, self._task, self._report = generator, task, report
        self._last: asyncio.Task[None] | None = None
        self._count = 0

    def begin(self, pixels: Pixels) -> None:
        self._last = asyncio.ensure_future(self._store(self._count, pixels, self._last))
        self._count += 1

    async def finish(self) -> None:
        if self._last is not None:
            await self._last

    async def _store(self, index: int, pixels: Pixels, before: asyncio.Task[None] | None) -> None:
        data = await self._generator.in_files(lambda: codec.encode_preview(pixels, self._task.request))
        key = f"{self._task.job_id}/{self._task.image}-{index}"
        await self._generator.assets.write_preview(key, data)
        if before is not None:
            await before
        self._report(TaskPreview(task_id=self._task.id, index=index, key=key))


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """Steps after which a preview is made: evenly spaced, never the last one, which is the picture itself."""
    return frozenset(round(steps * (k + 1) / (previews + 1)) for k in range(previews)) - {0, steps}
