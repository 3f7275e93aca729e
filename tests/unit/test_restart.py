"""What a job keeps when its Dispatcher dies: everything that was acknowledged."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from serve.errors import IdempotencyKeyReused, NotFound, StaleWriter
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.fleet import ReplicaGone
from serve.jobs.store import store_of
from serve.messages import (
    Canceled,
    Expired,
    Failed,
    JobQuery,
    JobStatus,
    Queued,
    Succeeded,
    TaskStepped,
)
from serve.settings import Settings
from tests.unit.replicas import Replicas, beat, dispatcher_over, events_of, last, order, submitted


class Life:
    """One Dispatcher over replicas of its own, from its start on a data folder to its death or end."""

    def __init__(self, data: Path, **changes: object) -> None:
        self.replicas = Replicas()
        self.jobs: Dispatcher = dispatcher_over(self.replicas, data, **changes)

    async def __aenter__(self) -> Life:
        await self.jobs.open()
        beat(self.jobs)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.jobs.close()

    async def runs(self) -> str:
        """Begins the first of the tasks that are placed."""
        task_id = (await self.sent())[0]
        self.jobs.report([TaskStepped(task_id=task_id, step=1, at=time.time())])
        await asyncio.sleep(0.05)  # noted with a commit for which nobody waits
        return task_id

    async def sent(self) -> list[str]:
        """The tasks on replicas, also of jobs that an earlier life has left: those are stored first."""
        async with asyncio.timeout(5):
            while not (held := await self.replicas.settled()) and await self.busy():
                await asyncio.sleep(0.005)
        return held

    async def busy(self) -> bool:
        status = await self.jobs.status()
        return status.queued + status.running > 0

    async def finish_all(self) -> None:
        while held := await self.sent():
            await self.replicas.finish(held[0])


async def test_queued_and_running_jobs_go_on_in_their_old_order(tmp_path: Path) -> None:
    async with Life(tmp_path) as before:
        ids = [await submitted(before.jobs, user=user) for user in "abcd"]
        await before.runs()
    async with Life(tmp_path) as after:
        assert [await _attempt(after, job_id) for job_id in ids] == [2, 1, 1, 1]
        await after.finish_all()
        assert [task.job_id for task in after.replicas.tasks] == ids
        assert [type(await last(after.jobs, job_id)) for job_id in ids] == [Succeeded] * 4


async def _attempt(life: Life, job_id: str) -> int:
    return (await life.jobs.get(job_id)).attempt


async def test_event_numbers_go_on_so_that_a_watch_can_be_resumed(tmp_path: Path) -> None:
    async with Life(tmp_path) as before:
        job_id = await submitted(before.jobs)
        await before.runs()
        seen = (await before.jobs.get(job_id)).seq
    async with Life(tmp_path) as after:
        resumed = asyncio.create_task(_resumed(after, job_id, seen))
        await after.finish_all()
        events = await asyncio.wait_for(resumed, 5)
    assert isinstance(events[0], Queued)
    assert isinstance(events[-1], Succeeded)
    numbers = [event.seq for event in events]
    assert numbers == sorted(set(numbers))


async def _resumed(life: Life, job_id: str, after: int) -> list[object]:
    return [event async for event in life.jobs.watch(job_id, after)]


async def test_positions_and_estimates_are_back_at_once(tmp_path: Path) -> None:
    async with Life(tmp_path) as before:
        await submitted(before.jobs, n=2)
        waiting = await submitted(before.jobs, user="v")
        expected = await before.jobs.get(waiting)
    async with Life(tmp_path) as after:
        assert (await after.jobs.get(waiting)).position == expected.position == 2
        await asyncio.sleep(0.6)
        assert (await after.jobs.get(waiting)).eta_seconds == pytest.approx(expected.eta_seconds)


async def test_an_ended_job_is_only_in_the_store_and_tells_its_end(tmp_path: Path) -> None:
    async with Life(tmp_path) as before:
        job_id = await submitted(before.jobs)
        await before.finish_all()
        end, view = await last(before.jobs, job_id), await before.jobs.get(job_id)
    async with Life(tmp_path) as after:
        assert await events_of(after.jobs, job_id) == [end]
        assert [event async for event in after.jobs.watch(job_id, after=end.seq)] == []
        assert await after.jobs.get(job_id) == view
        assert await after.jobs.find(JobQuery()) == [view]
        await after.jobs.cancel(job_id)
        assert await after.jobs.submit(replace(order(), job_id=job_id)) == job_id
        assert await after.replicas.settled() == []


async def test_a_cancel_that_was_asked_for_outlives_the_dispatcher(tmp_path: Path) -> None:
    async with Life(tmp_path) as before:
        job_id = await submitted(before.jobs)
        await before.runs()
    store = store_of(Settings(data=tmp_path))
    await store.open()
    (record,) = await store.unfinished()
    await store.save(replace(record, status=JobStatus.CANCELING))
    await store.close()
    async with Life(tmp_path) as after:
        assert isinstance(await last(after.jobs, job_id), Canceled)
        assert await after.replicas.settled() == []


async def test_an_explicit_deadline_counts_from_acceptance_through_restarts(tmp_path: Path) -> None:
    async with Life(tmp_path) as before:
        job_id = await submitted(before.jobs, deadline_ms=400)
    await asyncio.sleep(0.3)
    async with Life(tmp_path) as after:
        began = time.monotonic()
        assert isinstance(await last(after.jobs, job_id), Expired)
        assert time.monotonic() - began < 0.25


async def test_restarts_do_not_count_as_replicas_that_a_job_has_killed(tmp_path: Path) -> None:
    async with Life(tmp_path) as life:
        job_id = await submitted(life.jobs)
        await life.replicas.fail(await life.runs(), ReplicaGone("d1"))
        await asyncio.sleep(0.05)
    for _ in range(3):
        async with Life(tmp_path) as life:
            await life.runs()
    async with Life(tmp_path) as life:
        assert await _attempt(life, job_id) == 6
        for name in ("d2", "d3"):
            held = await life.sent()
            beat(life.jobs, name)
            await life.replicas.fail(held[0], ReplicaGone(life.replicas.tasks[-1].replica_id))
        event = await last(life.jobs, job_id)
    assert isinstance(event, Failed)
    assert event.error.code == "replica_lost"


async def test_the_older_of_two_dispatchers_never_writes_again(tmp_path: Path) -> None:
    async with Life(tmp_path) as stalled:
        job_id = await submitted(stalled.jobs)
        task_id = await stalled.runs()
        async with Life(tmp_path) as newer:
            await stalled.replicas.finish(task_id)
            await asyncio.sleep(0.05)
            assert (await stalled.jobs.get(job_id)).status is JobStatus.RUNNING
            for refused in (stalled.jobs.submit(order()), stalled.jobs.check()):
                with pytest.raises(StaleWriter):
                    await refused
            assert (await newer.jobs.get(job_id)).status is JobStatus.QUEUED
            await newer.finish_all()
            assert isinstance(await last(newer.jobs, job_id), Succeeded)
            assert len(await newer.jobs.find(JobQuery())) == 1


async def test_a_dispatcher_that_lost_its_store_gives_up_its_work(tmp_path: Path) -> None:
    async with Life(tmp_path) as stalled:
        await submitted(stalled.jobs, n=2)
        assert len(await stalled.replicas.settled()) == 2
        async with Life(tmp_path):
            with pytest.raises(StaleWriter):
                await stalled.jobs.check()
            assert await stalled.replicas.settled() == []


async def test_an_idempotency_key_finds_the_job_in_any_life_and_in_a_full_queue(tmp_path: Path) -> None:
    async with Life(tmp_path, queue={"max_depth": 1}) as before:
        job_id = await submitted(before.jobs, key="k")
        assert await before.jobs.submit(order(key="k")) == job_id
        with pytest.raises(IdempotencyKeyReused):
            await before.jobs.submit(order(key="k", body="other"))
    async with Life(tmp_path) as after:
        assert await after.jobs.submit(order(key="k")) == job_id
        assert len(await after.sent()) == 1


async def test_many_submissions_at_once_do_not_overrun_the_bounds(tmp_path: Path) -> None:
    async with Life(tmp_path, queue={"max_depth": 5}) as life:
        answers = await asyncio.gather(*(life.jobs.submit(order()) for _ in range(9)), return_exceptions=True)
        assert sum(isinstance(answer, str) for answer in answers) == 5


@pytest.mark.parametrize("begun", [False, True])
async def test_deleting_a_job_cancels_it_and_forgets_it(tmp_path: Path, begun: bool) -> None:
    async with Life(tmp_path) as life:
        job_id = await submitted(life.jobs)
        if begun:
            await life.runs()
        assert (await life.jobs.delete(job_id)).status is JobStatus.CANCELED
        assert await life.replicas.settled() == []
        with pytest.raises(NotFound):
            await life.jobs.get(job_id)
        assert await life.jobs.find(JobQuery()) == []


async def test_jobs_are_listed_as_they_are_now(tmp_path: Path) -> None:
    async with Life(tmp_path) as life:
        ids = [await submitted(life.jobs) for _ in range(2)]
        await life.runs()
        views = await life.jobs.find(JobQuery(user="u", text="CAT"))
        assert {view.id: view.status for view in views} == {ids[0]: JobStatus.RUNNING, ids[1]: JobStatus.QUEUED}
        assert [view.step for view in views if view.id == ids[0]] == [1]
        (running,) = await life.jobs.find(JobQuery(statuses=frozenset({JobStatus.RUNNING})))
        assert running.id == ids[0]


async def test_ended_jobs_are_forgotten_after_their_time(tmp_path: Path) -> None:
    async with Life(tmp_path) as before:
        job_id = await submitted(before.jobs)
        await before.finish_all()
        await last(before.jobs, job_id)
    await asyncio.sleep(1.1)
    async with Life(tmp_path, jobs_ttl_s=1) as after:
        async with asyncio.timeout(10):
            while await after.jobs.find(JobQuery()):
                await asyncio.sleep(0.02)
        with pytest.raises(NotFound):
            await after.jobs.get(job_id)
