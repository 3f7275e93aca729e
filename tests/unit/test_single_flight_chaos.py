"""Random comings and goings of identical jobs: whatever happens, each ends once, with pictures of its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from serve.errors import DeadlineExceeded, InvalidRequest, ZImageError
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.fleet import ReplicaGone
from serve.messages import JobQuery, JobStatus, Priority, Succeeded, TaskStepped, Terminal
from tests.unit.replicas import Drawing, beat, dispatcher_over, events_of, order

PRIORITIES: tuple[Priority, ...] = ("interactive", "standard", "batch")


class Chaos:
    def __init__(self, jobs: Dispatcher, replicas: Drawing, seed: int) -> None:
        self.jobs, self.replicas, self.chance = jobs, replicas, random.Random(seed)
        self.ids: list[str] = []
        self.deleted: set[str] = set()
        self.arriving: list[asyncio.Task[str]] = []
        self.lives = 1

    async def act(self) -> None:
        act = self.chance.choices(
            [self.submit, self.step, self.finish, self.cancel, self.fail, self.lose, self.late, self.delete, self.wait],
            [12, 4, 5, 4, 1, 1, 1, 1, 3],
        )[0]
        await act()

    async def submit(self) -> None:
        chance = self.chance
        submission = order(
            seeded=True,
            seed=chance.choice((5, 105)),
            n=chance.choice((1, 1, 2)),
            priority=chance.choice(PRIORITIES),
            user=chance.choice("uv"),
            cache=chance.choice(("auto", "auto", "auto", "skip")),
            key=chance.choice((None, None, "k")),
            deadline_ms=chance.choice((None, None, 60_000)),
        )
        self.arriving.append(asyncio.create_task(self.jobs.submit(submission)))

    async def step(self) -> None:
        for task_id in self.held():
            self.jobs.report([TaskStepped(task_id=task_id, step=self.chance.randrange(8), at=time.time())])

    async def finish(self) -> None:
        for task_id in self.held():
            await self.replicas.finish(task_id)

    async def fail(self) -> None:
        await self.end_task(InvalidRequest("no"))

    async def late(self) -> None:
        await self.end_task(DeadlineExceeded("late"))

    async def lose(self) -> None:
        for task_id in self.held():
            task = next(task for task in self.replicas.tasks if task.id == task_id)
            self.lives += 1
            beat(self.jobs, f"d{self.lives}", engine="e1")
            await self.replicas.fail(task_id, ReplicaGone(task.replica_id))

    async def end_task(self, error: ZImageError) -> None:
        for task_id in self.held():
            await self.replicas.fail(task_id, error)

    async def cancel(self) -> None:
        await self.arrived()
        if self.ids:
            await self.jobs.cancel(self.chance.choice(self.ids))

    async def delete(self) -> None:
        """As the API does it."""
        await self.arrived()
        if self.ids:
            job_id = self.chance.choice(self.ids)
            self.ids.remove(job_id)
            self.deleted.add(job_id)
            view = await self.jobs.delete(job_id)
            for image in range(view.request.n):
                await self.replicas.assets.delete(f"{job_id}-{image}")

    async def wait(self) -> None:
        await asyncio.sleep(0.01)

    async def arrived(self) -> None:
        """Some of those that are on their way are known."""
        done = [task for task in self.arriving if task.done()]
        self.arriving = [task for task in self.arriving if not task.done()]
        for task in done:
            with suppress(ZImageError):
                job_id = task.result()
                if job_id not in self.ids and job_id not in self.deleted:
                    self.ids.append(job_id)

    def held(self) -> list[str]:
        held = [task_id for task_id, future in self.replicas.held.items() if not future.done()]
        return self.chance.sample(held, min(1, len(held)))

    async def settle(self) -> None:
        while self.arriving:
            await asyncio.gather(*self.arriving, return_exceptions=True)
            await self.arrived()
        for _ in range(400):
            for task_id in await self.replicas.settled():
                if task_id in self.replicas.held and not self.replicas.held[task_id].done():
                    await self.replicas.finish(task_id)
            views = [await self.jobs.get(job_id) for job_id in self.ids]
            if all(view.status.terminal for view in views):
                return
            await asyncio.sleep(0.005)
        raise AssertionError([view for view in views if not view.status.terminal])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(12))
async def test_every_job_ends_once_with_pictures_of_its_own(tmp_path: Path, seed: int, shared: bool) -> None:
    replicas = Drawing(tmp_path)
    jobs = dispatcher_over(replicas, tmp_path, cache={"shared": shared})
    await jobs.open()
    beat(jobs, engine="e1")
    chaos = Chaos(jobs, replicas, seed)
    for _ in range(120):
        await chaos.act()
    await chaos.settle()
    await check(jobs, chaos)
    owners = {path.name.partition("-")[0] for path in (tmp_path / "assets").rglob("*.png")}
    assert owners <= set(chaos.ids)  # no picture without its job
    await jobs.close()


async def check(jobs: Dispatcher, chaos: Chaos) -> None:
    ids = chaos.ids
    assert await chaos.replicas.settled() == []
    status = await jobs.status()
    assert (status.queued, status.running, len(jobs._pools.first.queue)) == (0, 0, 0)
    uses = Counter[str]()
    for job_id in ids:
        events = await events_of(jobs, job_id)
        assert [isinstance(event, Terminal) for event in events] == [False] * (len(events) - 1) + [True]
        end = events[-1]
        if isinstance(end, Succeeded):
            uses[end.cache] += 1
            for image in end.images:
                assert image.asset_id.startswith(f"{job_id}-")
                assert (await chaos.replicas.assets.read(image.asset_id)).metadata.get("job_id", job_id) == job_id
    stored = {view.id: view.status for view in await jobs.find(JobQuery(limit=200))}
    assert set(stored) == set(ids)
    assert all(status.terminal for status in stored.values())
    flights = jobs._pools.first.life.flights
    assert [len(left) for left in (flights._of, flights._open, flights._followers)] == [0, 0, 0]
    assert sum(uses.values()) == sum(status is JobStatus.SUCCEEDED for status in stored.values())
