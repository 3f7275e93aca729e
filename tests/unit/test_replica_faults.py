"""What a replica says of its device, and what the Dispatcher makes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from serve.errors import DeviceLost, TooLargeForMemory
from serve.jobs.deadlines import FACTOR
from serve.jobs.dispatcher import Dispatcher
from serve.messages import Phase, Priority, ReplicaState, Submission, Succeeded
from tests.unit.replicas import SLOTS, STEP_S, TIMES, Replicas, last, order, submitted

SOLO_S = 8 * STEP_S


def denoiser(id: str, **changes: object) -> ReplicaState:
    plain = ReplicaState(replica_id=id, role="denoiser", phase=Phase.READY, slots=SLOTS, step_times=TIMES)
    return replace(plain, **changes)  # type: ignore[arg-type]


def guided() -> Submission:
    submission = order()
    return replace(submission, request=replace(submission.request, guidance=3.0))


async def test_what_no_memory_takes_is_refused_with_the_largest_that_one_does(jobs: Dispatcher) -> None:
    jobs.heartbeat(denoiser("d1", max_px=64, max_guided_px=48))
    jobs.heartbeat(denoiser("d2", max_px=96, max_guided_px=80))
    with pytest.raises(TooLargeForMemory, match="128x128") as refused:
        await jobs.submit(order())
    assert (refused.value.status, refused.value.param) == (400, "size")
    assert "96x96" in str(refused.value.hint)
    with pytest.raises(TooLargeForMemory) as refused:
        await jobs.submit(guided())
    assert "80x80" in str(refused.value.hint)


def begun() -> Submission:
    submission = order()
    return replace(submission, request=replace(submission.request, image="0" * 64, strength=0.5))


async def test_what_can_be_drawn_but_not_begun_with_is_refused_before_it_waits(jobs: Dispatcher) -> None:
    jobs.heartbeat(denoiser("d1", max_input_px=64))
    jobs.heartbeat(denoiser("d2", max_px=512, max_input_px=96))
    with pytest.raises(TooLargeForMemory, match="128x128") as refused:
        await jobs.submit(begun())
    assert "96x96" in str(refused.value.hint)
    assert await submitted(jobs), "without a picture to begin with it fits"


async def test_a_picture_that_begins_with_another_goes_where_that_can_be_encoded(
    jobs: Dispatcher, replicas: Replicas
) -> None:
    jobs.heartbeat(denoiser("d1", max_input_px=64))
    jobs.heartbeat(denoiser("d2", slots=1))
    for _ in range(2):
        await jobs.submit(begun())
    assert len(await replicas.settled()) == 1
    assert [task.replica_id for task in replicas.tasks] == ["d2"]


async def test_a_picture_goes_where_it_fits(jobs: Dispatcher, replicas: Replicas) -> None:
    jobs.heartbeat(denoiser("d1", max_px=64))
    jobs.heartbeat(denoiser("d2", slots=1))
    for _ in range(3):
        await submitted(jobs)
    assert len(await replicas.settled()) == 1
    assert [task.replica_id for task in replicas.tasks] == ["d2"]


async def test_jobs_of_a_lost_device_go_on_elsewhere(jobs: Dispatcher, replicas: Replicas) -> None:
    job_ids = [await submitted(jobs) for _ in range(SLOTS)]
    held = await replicas.settled()
    replicas.held[held[0]].set_exception(DeviceLost("the device is lost"))
    assert await replicas.settled() == [], "nothing is left on it, nothing new is placed there"
    jobs.heartbeat(denoiser("d1", phase=Phase.LOST))
    assert await replicas.settled() == []
    jobs.heartbeat(denoiser("d2"))
    while held := await replicas.settled():
        await replicas.finish(held[0])
    ends = await asyncio.gather(*(last(jobs, job_id) for job_id in job_ids))
    assert all(isinstance(end, Succeeded) for end in ends)
    assert {task.replica_id for task in replicas.tasks[SLOTS:]} == {"d2"}
    assert {task.attempt for task in replicas.tasks[SLOTS:]} == {2}


@pytest.mark.parametrize("owed", ["standard", "batch"])
async def test_the_share_of_a_lower_class_is_not_lost_in_the_window(
    jobs: Dispatcher, replicas: Replicas, owed: Priority
) -> None:
    """Placed because it is owed, it ranks on the replica among those whose turn it takes, not behind them all."""
    for _ in range(40):
        await submitted(jobs)
    lower = await submitted(jobs, priority=owed)
    while not (mine := [task for task in replicas.tasks if task.job_id == lower]):
        await replicas.finish((await replicas.settled())[0])
    assert len(replicas.tasks) < 20, "it came before most of the others"
    neighbours = replicas.tasks[-3:-1]
    assert mine[0].deadline_in <= max(task.deadline_in for task in neighbours) + SOLO_S
    assert mine[0].deadline_in < FACTOR[owed] * SOLO_S


async def test_what_runs_because_nothing_else_waits_keeps_its_own_deadline(
    jobs: Dispatcher, replicas: Replicas
) -> None:
    await submitted(jobs, priority="batch")
    await replicas.settled()
    assert replicas.tasks[0].deadline_in == pytest.approx(FACTOR["batch"] * SOLO_S, rel=0.1)
