"""A paused Dispatcher takes jobs in and places none, also after a restart; figures are measured or None."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from serve.errors import QueueFull
from serve.jobs.dispatcher import Dispatcher
from serve.messages import JobStatus, Phase, ReplicaState, Succeeded, TaskStepped
from tests.unit.replicas import SLOTS, Replicas, beat, dispatcher_over, last, submitted


async def opened(replicas: Replicas, data: Path, **changes: object) -> Dispatcher:
    jobs = dispatcher_over(replicas, data, **changes)
    await jobs.open()
    beat(jobs)
    return jobs


async def test_paused_jobs_wait_and_what_runs_is_finished(tmp_path: Path) -> None:
    replicas = Replicas()
    jobs = await opened(replicas, tmp_path)
    running = await submitted(jobs)
    (task,) = await replicas.settled()
    jobs.report([TaskStepped(task_id=task, step=1, at=time.time())])
    await jobs.hold(True)
    waiting = await submitted(jobs)
    assert await replicas.settled() == [task]
    view, status = await jobs.get(waiting), await jobs.status()
    assert (view.status, view.position, view.eta_seconds) == (JobStatus.QUEUED, 1, None)
    assert (status.ready, status.paused, status.phase, status.eta_seconds) == (True, True, "paused", None)
    await replicas.finish(task)
    assert isinstance(await last(jobs, running), Succeeded)
    assert await replicas.settled() == []
    await jobs.hold(False)
    (task,) = await replicas.settled()
    await replicas.finish(task)
    assert isinstance(await last(jobs, waiting), Succeeded)
    assert (await jobs.status()).phase == "ready"
    await jobs.close()


async def test_the_bounds_of_the_queue_hold_while_it_is_paused(tmp_path: Path) -> None:
    jobs = await opened(Replicas(), tmp_path, queue={"max_depth": 2, "max_depth_per_user": 2})
    await jobs.hold(True)
    for _ in range(2):
        await submitted(jobs)
    with pytest.raises(QueueFull):
        await submitted(jobs)
    await jobs.close()


async def test_a_pause_outlives_the_dispatcher(tmp_path: Path) -> None:
    jobs = await opened(Replicas(), tmp_path)
    await jobs.hold(True)
    job_id = await submitted(jobs)
    await jobs.close()
    replicas = Replicas()
    jobs = await opened(replicas, tmp_path)
    assert (await jobs.status()).paused
    assert await replicas.settled() == []
    await jobs.hold(False)
    (task,) = await replicas.held_when(1)
    await replicas.finish(task)
    assert isinstance(await last(jobs, job_id), Succeeded)
    await jobs.close()
    jobs = await opened(Replicas(), tmp_path)
    assert not (await jobs.status()).paused
    await jobs.close()


async def test_everybodys_jobs_in_serving_order(tmp_path: Path) -> None:
    replicas = Replicas()
    jobs = await opened(replicas, tmp_path)
    begun = [await submitted(jobs, user="a") for _ in range(SLOTS)]
    jobs.report([TaskStepped(task_id=task, step=1, at=time.time()) for task in await replicas.settled()])
    batch = await submitted(jobs, user="b", priority="batch")
    standard = await submitted(jobs, user="c", priority="standard")
    views = await jobs.active(100)
    assert [view.id for view in views] == [*begun, standard, batch]
    assert [view.id for view in await jobs.active(1)] == begun[:1]
    await jobs.close()


async def test_figures_are_measured_or_none(tmp_path: Path) -> None:
    replicas = Replicas()
    jobs = await opened(replicas, tmp_path)
    nothing = await jobs.stats()
    assert (nothing.response_s, nothing.images_per_minute, nothing.ended) == (None, 0.0, {})
    job_id = await submitted(jobs, n=2)
    batch = await submitted(jobs, user="b", priority="batch")
    for task in await replicas.settled():
        await replicas.finish(task)
    await last(jobs, job_id)
    await jobs.cancel(batch)
    jobs.heartbeat(
        ReplicaState(replica_id="d2", role="denoiser", phase=Phase.READY, slots=2, vram_used=2**30, vram_total=2**34)
    )
    stats = await jobs.stats()
    view = await jobs.get(job_id)
    assert stats.ended == {"canceled": 1, "succeeded": 1}
    assert stats.response_s == pytest.approx((view.completed_at or 0) - view.created_at, abs=0.05)
    assert stats.images_per_minute > 0
    assert {replica.state.replica_id for replica in stats.replicas} == {"t1", "d1", "d2"}
    assert sum(replica.state.vram_used or 0 for replica in stats.replicas) == 2**30
    await jobs.close()
