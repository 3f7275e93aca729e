"""Replicas that answer when a test says so, and a Dispatcher over them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ulid import ULID

from serve.assets.local import LocalAssets
from serve.assets.metadata import describe
from serve.assets.store import AssetInfo
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.store import store_of
from serve.messages import (
    Event,
    Generated,
    ImageFormat,
    ImageRequest,
    Phase,
    Priority,
    ReplicaState,
    StoredImage,
    Submission,
    Succeeded,
    Task,
)
from serve.settings import Settings

TURBO = Settings().served_model_name
STEP_S = 0.01
SLOTS = 2
TIMES = {"step_1": {"96": STEP_S}, "decode": {"16384": 0.0}}


class Replicas:
    """Holds every task until the test finishes, fails or loses it."""

    def __init__(self) -> None:
        self.held: dict[str, asyncio.Future[Generated]] = {}
        self.tasks: list[Task] = []
        self.encoded = 0

    def encode(self, request: ImageRequest) -> object:
        self.encoded += 1
        return request.prompt

    async def generate(self, task: Task, embeddings: object) -> Generated:
        assert embeddings == task.request.prompt
        self.tasks.append(task)
        future = self.held[task.id] = asyncio.get_running_loop().create_future()
        try:
            return await future
        finally:
            del self.held[task.id]

    async def settled(self) -> list[str]:
        for _ in range(10):
            await asyncio.sleep(0)
        return list(self.held)

    async def held_when(self, count: int) -> list[str]:
        """As soon as it holds so many tasks, which may have to be stored first."""
        async with asyncio.timeout(10):
            while len(self.held) < count:
                await asyncio.sleep(0.005)
        return list(self.held)

    async def finish(self, task_id: str) -> None:
        task = next(task for task in self.tasks if task.id == task_id)
        image = StoredImage(
            asset_id=task.asset_id,
            seed=task.seed,
            width=128,
            height=128,
            format=task.request.output_format,
            bytes=len(task_id),
        )
        now = time.time()
        self.held[task_id].set_result(Generated(image=image, started_at=now, encode_s=0, denoise_s=0.08, decode_s=0))
        await self.settled()

    async def fail(self, task_id: str, error: Exception) -> None:
        self.held[task_id].set_exception(error)
        await self.settled()


class StickyAssets(LocalAssets):
    """Nothing is linked while `links` is clear."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.links = asyncio.Event()
        self.links.set()

    async def link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        await self.links.wait()
        return await super().link(source_id, target_id, metadata)


class Drawing(Replicas):
    """Leaves a file in the asset store, as real replicas do: other bytes for every task."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        self.assets = StickyAssets(data / "assets")
        self.writes: dict[str, asyncio.Task[AssetInfo]] = {}

    async def generate(self, task: Task, embeddings: object) -> Generated:
        """Who cancels it is answered when nothing is written any more."""
        try:
            return await super().generate(task, embeddings)
        finally:
            if task.id in self.writes:
                await asyncio.gather(self.writes.pop(task.id), return_exceptions=True)

    async def finish(self, task_id: str) -> None:
        task = next(task for task in self.tasks if task.id == task_id)
        metadata = describe(task.request, task.image, job_id=task.job_id, user=task.user, weights="test")
        writing = self.assets.write(task.asset_id, task_id.encode(), task.request.output_format, metadata)
        await self.writes.setdefault(task_id, asyncio.ensure_future(writing))
        if task_id in self.held and not self.held[task_id].done():  # else it was stopped meanwhile
            await super().finish(task_id)

    async def bytes_of(self, end: Succeeded) -> bytes:
        return b"".join([(await self.assets.read(image.asset_id)).data for image in end.images])


def dispatcher_over(replicas: Replicas, data: Path, **changes: object) -> Dispatcher:
    settings = Settings(data=data, **changes)
    assets = replicas.assets if isinstance(replicas, Drawing) else LocalAssets(data / "assets")
    return Dispatcher(settings, replicas, store_of(settings), assets)


def beat(dispatcher: Dispatcher, denoiser: str = "d1", phase: Phase = Phase.READY, engine: str = "") -> None:
    dispatcher.heartbeat(ReplicaState(replica_id="t1", role="text_encoder", phase=phase))
    state = ReplicaState(replica_id=denoiser, role="denoiser", phase=phase, slots=SLOTS, step_times=TIMES)
    dispatcher.heartbeat(replace(state, engine=engine))


def order(
    *,
    n: int = 1,
    user: str = "u",
    priority: Priority = "interactive",
    deadline_ms: int | None = None,
    key: str | None = None,
    body: str = "body",
    seeded: bool = False,
    cache: Literal["auto", "skip"] = "auto",
    previews: int = 0,
    seed: int = 5,
    output_format: ImageFormat = "png",
    webhook_url: str | None = None,
    model: str = TURBO,
) -> Submission:
    request = ImageRequest(
        model=model, prompt="a cat", width=128, height=128, steps=8, seed=seed, n=n, output_format=output_format
    )
    return Submission(
        job_id=str(ULID()),
        request=request,
        prompt_tokens=20,
        user=user,
        priority=priority,
        deadline_ms=deadline_ms,
        previews=previews,
        seeded=seeded,
        cache=cache,
        idempotency_key=key,
        body_sha256=body,
        webhook_url=webhook_url,
    )


async def submitted(jobs: Dispatcher, **how: object) -> str:
    submission = order(**how)  # type: ignore[arg-type]
    await jobs.submit(submission)
    return submission.job_id


async def events_of(jobs: Dispatcher, job_id: str) -> list[Event]:
    return [event async for event in jobs.watch(job_id)]


async def last(jobs: Dispatcher, job_id: str) -> Event:
    return (await asyncio.wait_for(events_of(jobs, job_id), 5))[-1]
