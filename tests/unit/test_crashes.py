"""What a job costs when the whole service dies with it, again and again; and that an innocent one is not blamed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serve.assets.local import LocalAssets
from serve.errors import NotFound
from serve.jobs.commits import NOTE_S
from serve.jobs.fleet import ReplicaGone
from serve.jobs.store import store_of
from serve.messages import Canceled, Failed, Started, Succeeded
from serve.settings import Settings
from tests.unit.replicas import beat, last, submitted
from tests.unit.test_restart import Life


@asynccontextmanager
async def crashing(data: Path, **changes: object) -> AsyncIterator[Life]:
    """A life that ends as a power cut does: its last words never reach the store, which belongs to another by then."""
    async with Life(data, **changes) as life:
        yield life
        await asyncio.sleep(NOTE_S + 0.1)  # what was noted before is committed
        successor = store_of(Settings(data=data))
        await successor.open()
        await successor.close()


def on_replicas(life: Life) -> dict[str, int]:
    return dict(Counter(task.replica_id for task in life.replicas.tasks if task.id in life.replicas.held))


async def crashes_of(data: Path) -> list[int]:
    store = store_of(Settings(data=data))
    await store.open()
    found = [record.crashes for record in await store.unfinished()]
    await store.close()
    return found


async def test_a_job_that_takes_the_service_down_fails_instead_of_doing_it_for_ever(tmp_path: Path) -> None:
    async with crashing(tmp_path) as life:
        job_id = await submitted(life.jobs)
        await life.runs()
    for _ in range(2):
        async with crashing(tmp_path) as life:
            assert len(await life.sent()) == 1  # and no step of it was ever reported
    async with Life(tmp_path) as life:
        event = await last(life.jobs, job_id)
        assert isinstance(event, Failed)
        assert event.error.code == "replica_lost"
        assert event.error.message == "the service died 3 times while it drew this job, which is given up"
        assert await life.replicas.settled() == []


async def test_one_that_kills_before_its_first_step_costs_one_crash_more(tmp_path: Path) -> None:
    """Placing a new job is not stored, to be quick; what a Dispatcher before has left is stored as placed first."""
    async with crashing(tmp_path) as life:
        job_id = await submitted(life.jobs)
        assert len(await life.replicas.settled()) == 1
    for _ in range(3):
        async with crashing(tmp_path) as life:
            assert len(await life.sent()) == 1
    async with Life(tmp_path) as life:
        assert isinstance(await last(life.jobs, job_id), Failed)


async def test_orderly_stops_blame_nobody(tmp_path: Path) -> None:
    async with Life(tmp_path) as life:
        job_id = await submitted(life.jobs)
        await life.runs()
    for _ in range(4):
        async with Life(tmp_path) as life:
            await life.sent()
            await life.runs()
        assert await crashes_of(tmp_path) == [0]
    async with Life(tmp_path) as life:
        await life.sent()
        await life.finish_all()
        assert isinstance(await last(life.jobs, job_id), Succeeded)


async def test_jobs_that_only_waited_are_not_blamed(tmp_path: Path) -> None:
    async with crashing(tmp_path) as life:
        for _ in range(4):
            await submitted(life.jobs)
        await life.runs()
    assert await crashes_of(tmp_path) == [1, 0, 0, 0]


async def test_a_job_that_went_back_to_the_queue_is_not_blamed(tmp_path: Path) -> None:
    async with crashing(tmp_path) as life:
        await submitted(life.jobs)
        task_id = await life.runs()
        await life.replicas.fail(task_id, ReplicaGone("d1"))
    assert await crashes_of(tmp_path) == [0]


async def test_a_suspect_has_its_replica_to_itself_and_on_its_last_try_the_whole_service(tmp_path: Path) -> None:
    async with crashing(tmp_path) as life:
        for _ in range(3):
            await submitted(life.jobs)
        await life.runs()  # the first one; two are on the replica
    async with crashing(tmp_path) as life:
        beat(life.jobs, "d2")
        await life.replicas.held_when(3)
        assert on_replicas(life) == {"d1": 1, "d2": 2}
    async with Life(tmp_path) as life:
        beat(life.jobs, "d2")
        suspect = await life.sent()
        assert on_replicas(life) == {"d1": 1}
        await life.replicas.finish(suspect[0])
        await life.replicas.held_when(2)
        assert on_replicas(life) == {"d1": 1, "d2": 1}


async def test_an_image_of_a_job_that_ended_is_not_on_trial(tmp_path: Path) -> None:
    async with crashing(tmp_path) as life:
        job_id = await submitted(life.jobs)
        await life.finish_all()
        assert isinstance(await last(life.jobs, job_id), Succeeded)
    async with Life(tmp_path) as life:
        view = await life.jobs.get(job_id)
        assert view.attempt == 1
        assert not isinstance(await last(life.jobs, job_id), Started)


async def test_a_job_without_a_result_leaves_no_picture_behind(tmp_path: Path) -> None:
    assets = LocalAssets(tmp_path / "assets")
    async with Life(tmp_path) as life:
        job_id = await submitted(life.jobs, n=2)
        first, _ = await life.replicas.settled()
        await assets.write(f"{job_id}-0", b"picture", "png", {})
        await life.replicas.finish(first)
        await life.jobs.cancel(job_id)
        assert isinstance(await last(life.jobs, job_id), Canceled)
    with pytest.raises(NotFound):
        await assets.stat(f"{job_id}-0")
