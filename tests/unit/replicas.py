"""Replicas that answer when a test says so, and a Dispatcher over them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ulid import ULID

from serve.assets.store import LocalAssets
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.store import store_of
from serve.messages import Event, Generated, ImageRequest, Phase, Priority, ReplicaState, StoredImage, Submission, Task
from serve.settings import Settings

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

    async def finish(self, task_id: str) -> None:
        task = next(task for task in self.tasks if task.id == task_id)
        image = StoredImage(asset_id=task.asset_id, seed=task.seed, width=128, height=128, format="png", bytes=1)
        now = time.time()
        self.held[task_id].set_result(Generated(image=image, started_at=now, encode_s=0, denoise_s=0.08, decode_s=0))
        await self.settled()

    async def fail(self, task_id: str, error: Exception) -> None:
        self.held[task_id].set_exception(error)
        await self.settled()


def dispatcher_over(replicas: Replicas, data: Path, **changes: object) -> Dispatcher:
    settings = Settings(data=data, **changes)
    return Dispatcher(settings, replicas, store_of(settings), LocalAssets(data / "assets"))


def beat(dispatcher: Dispatcher, denoiser: str = "d1", phase: Phase = Phase.READY) -> None:
    dispatcher.heartbeat(ReplicaState(replica_id="t1", role="text_encoder", phase=phase))
    dispatcher.heartbeat(ReplicaState(replica_id=denoiser, role="denoiser", phase=phase, slots=SLOTS, step_times=TIMES))


def order(
    *,
    n: int = 1,
    user: str = "u",
    priority: Priority = "interactive",
    deadline_ms: int | None = None,
    key: str | None = None,
    body: str = "body",
) -> Submission:
    request = ImageRequest(model="m", prompt="a cat", width=128, height=128, steps=8, seed=5, n=n)
    return Submission(
        job_id=str(ULID()),
        request=request,
        prompt_tokens=20,
        user=user,
        priority=priority,
        deadline_ms=deadline_ms,
        idempotency_key=key,
        body_sha256=body,
    )


async def submitted(jobs: Dispatcher, **how: object) -> str:
    submission = order(**how)  # type: ignore[arg-type]
    await jobs.submit(submission)
    return submission.job_id


async def events_of(jobs: Dispatcher, job_id: str) -> list[Event]:
    return [event async for event in jobs.watch(job_id)]


async def last(jobs: Dispatcher, job_id: str) -> Event:
    return (await asyncio.wait_for(events_of(jobs, job_id), 5))[-1]
