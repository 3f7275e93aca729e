"""The Dispatcher over replicas that answer when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from serve.errors import DeadlineInfeasible, InvalidRequest, NotFound, NotReady, QueueFull
from serve.jobs import waiting as room
from serve.jobs.dispatcher import POSITIONS_EVERY_S, Dispatcher
from serve.jobs.fleet import ReplicaGone
from serve.messages import (
    Canceled,
    Canceling,
    Event,
    Expired,
    Failed,
    Phase,
    Progress,
    Queued,
    Started,
    Succeeded,
    TaskStepped,
    Terminal,
)
from tests.unit.replicas import SLOTS, Replicas, beat, dispatcher_over, events_of, last, order, submitted


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


@pytest.fixture
async def jobs(replicas: Replicas, tmp_path: Path) -> AsyncIterator[Dispatcher]:
    dispatcher = dispatcher_over(replicas, tmp_path, queue={"max_depth": 5, "max_depth_per_user": 3})
    await dispatcher.open()
    beat(dispatcher)
    yield dispatcher
    await dispatcher.close()


async def test_a_job_goes_from_queued_through_progress_to_its_picture(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs)
    (task_id,) = await replicas.settled()
    jobs.report([TaskStepped(task_id=task_id, step=0, at=time.time())])
    jobs.report([TaskStepped(task_id=task_id, step=3, at=time.time())])
    await replicas.finish(task_id)
    events = await events_of(jobs, job_id)
    assert [type(event) for event in events] == [Queued, Started, Progress, Succeeded]
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert isinstance(events[-2], Progress)
    assert (events[-2].step, events[-2].steps) == (8, 8)


async def test_submitting_twice_is_one_job(jobs: Dispatcher, replicas: Replicas) -> None:
    submission = order()
    await jobs.submit(submission)
    await jobs.submit(submission)
    assert len(await replicas.settled()) == 1


async def test_n_images_share_one_encoding_and_answer_in_order(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs, n=3)
    while held := await replicas.settled():
        await replicas.finish(held[-1])
    event = await last(jobs, job_id)
    assert isinstance(event, Succeeded)
    assert [image.seed for image in event.images] == [5, 6, 7]
    assert replicas.encoded == 1


async def test_a_replica_holds_no_more_than_its_window(jobs: Dispatcher, replicas: Replicas) -> None:
    for user in "ab":
        await submitted(jobs, n=3, user=user)
    assert len(await replicas.settled()) == SLOTS
    beat(jobs, "d2")
    assert len(await replicas.settled()) == 2 * SLOTS


async def test_queued_jobs_know_their_position_and_when_they_are_done(jobs: Dispatcher, replicas: Replicas) -> None:
    first = await submitted(jobs, n=2)
    second, third = [await submitted(jobs, user=user) for user in "ab"]
    heard = {job_id: await anext(aiter(jobs.watch(job_id))) for job_id in (first, second, third)}
    assert [(event.position, event.length) for event in heard.values()] == [(1, 1), (2, 2), (3, 3)]
    assert [event.eta_seconds for event in heard.values()] == pytest.approx([0.16, 0.24, 0.32])


async def test_positions_move_up_when_jobs_start(jobs: Dispatcher, replicas: Replicas) -> None:
    await submitted(jobs)
    second = await submitted(jobs)
    held = await replicas.settled()
    jobs.report([TaskStepped(task_id=held[0], step=0, at=time.time())])
    moved = [event async for event in _until(jobs, second, lambda event: event.seq == 2)]
    assert isinstance(moved[-1], Queued)
    assert moved[-1].position == 1


async def _until(jobs: Dispatcher, job_id: str, done: Callable[[Event], bool]) -> AsyncIterator[Event]:
    async for event in jobs.watch(job_id):
        yield event
        if done(event):
            return


async def test_before_anything_is_ready_nothing_is_accepted(replicas: Replicas, tmp_path: Path) -> None:
    dispatcher = dispatcher_over(replicas, tmp_path)
    beat(dispatcher, phase=Phase.WARMING_UP)
    with pytest.raises(NotReady, match="warming up") as refused:
        await dispatcher.submit(order())
    assert refused.value.retry_after
    status = await dispatcher.status()
    assert (status.ready, status.phase) == (False, "warming up")


async def test_a_full_queue_refuses_and_says_when_to_come_back(jobs: Dispatcher, replicas: Replicas) -> None:
    for user in ("a", "a", "a", "b", "c"):
        await submitted(jobs, user=user)
    with pytest.raises(QueueFull, match="5 of 5") as refused:
        await jobs.submit(order(user="d"))
    assert refused.value.retry_after == 1


async def test_one_user_cannot_fill_the_queue(jobs: Dispatcher, replicas: Replicas) -> None:
    for _ in range(3):
        await submitted(jobs, user="greedy")
    with pytest.raises(QueueFull, match="3 may"):
        await jobs.submit(order(user="greedy"))
    await submitted(jobs, user="modest")


async def test_a_queued_job_is_cancelled_at_once(jobs: Dispatcher, replicas: Replicas) -> None:
    waiting = [await submitted(jobs, user=user) for user in "abc"]
    await jobs.cancel(waiting[2])
    await jobs.cancel(waiting[0])
    assert isinstance(await last(jobs, waiting[2]), Canceled)
    assert isinstance(await last(jobs, waiting[0]), Canceled)
    assert [task_id.split("-")[0] for task_id in await replicas.settled()] == [waiting[1]]


async def test_a_running_job_says_canceling_and_then_canceled(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs)
    (task_id,) = await replicas.settled()
    jobs.report([TaskStepped(task_id=task_id, step=1, at=time.time())])
    await jobs.cancel(job_id)
    await jobs.cancel(job_id)
    assert [type(e) for e in await events_of(jobs, job_id)][-2:] == [Canceling, Canceled]
    assert await replicas.settled() == []
    await jobs.cancel(job_id)


async def test_a_lost_replica_costs_an_attempt_and_not_the_job(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs, n=2)
    held = await replicas.settled()
    beat(jobs, "d2")
    await replicas.fail(held[0], ReplicaGone("d1"))
    (again,) = await replicas.settled()
    assert replicas.tasks[-1].attempt == 2
    assert replicas.tasks[-1].replica_id == "d2"
    await replicas.finish(again)
    await replicas.finish((await replicas.settled())[0])
    assert isinstance(await last(jobs, job_id), Succeeded)


async def test_images_lost_together_are_one_lost_attempt(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs, n=2)
    assert len(await replicas.settled()) == 2
    for number in range(2):
        task = replicas.tasks[-1]
        await replicas.fail(task.id, ReplicaGone(task.replica_id))
        beat(jobs, f"new{number}")
        await replicas.settled()
    assert max(task.attempt for task in replicas.tasks) == 3
    while held := await replicas.settled():
        await replicas.finish(held[0])
    assert isinstance(await last(jobs, job_id), Succeeded)


async def test_what_lost_a_replica_before_runs_alone(jobs: Dispatcher, replicas: Replicas) -> None:
    for user in "ab":
        await submitted(jobs, user=user)
    held = await replicas.settled()
    beat(jobs, "d2")
    await replicas.fail(held[0], ReplicaGone("d1"))
    assert len(await replicas.settled()) == 1, "two suspects never share a replica"


async def test_a_job_that_kills_its_replica_three_times_fails(jobs: Dispatcher, replicas: Replicas) -> None:
    poison = await submitted(jobs)
    for number in range(3):
        (task_id,) = await replicas.settled()
        beat(jobs, f"new{number}")
        await replicas.fail(task_id, ReplicaGone(replicas.tasks[-1].replica_id))
    event = await last(jobs, poison)
    assert isinstance(event, Failed)
    assert event.error.code == "replica_lost"
    assert "3 times" in event.error.message


async def test_a_silent_replica_is_given_up_and_its_work_goes_elsewhere(replicas: Replicas, tmp_path: Path) -> None:
    dispatcher = dispatcher_over(replicas, tmp_path, timeouts={"heartbeat_s": 0.02})
    await dispatcher.open()
    beat(dispatcher, "stuck")
    await submitted(dispatcher)
    await replicas.settled()
    for _ in range(100):
        await asyncio.sleep(0.02)
        beat(dispatcher, "alive")
        if replicas.tasks[-1].replica_id == "alive":
            break
    assert [task.attempt for task in replicas.tasks] == [1, 2]
    assert len(replicas.held) == 1
    await dispatcher.close()


async def test_an_image_that_fails_fails_only_itself(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs, n=3)
    held = await replicas.settled()
    await replicas.fail(held[1], InvalidRequest("too large for this GPU", param="size"))
    while held := await replicas.settled():
        await replicas.finish(held[0])
    end = await last(jobs, job_id)
    assert isinstance(end, Succeeded)
    assert [image.seed for image in end.images] == [5, 7]
    ((image, seed, error),) = [(missing.image, missing.seed, missing.error) for missing in end.errors]
    assert (image, seed, error.param) == (1, 6, "size")
    assert (await jobs.get(job_id)).errors == end.errors


async def test_a_job_fails_when_all_of_its_images_do(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs, n=2)
    for number, task_id in enumerate(await replicas.settled()):
        await replicas.fail(task_id, InvalidRequest(f"no {number}", param="size"))
    end = await last(jobs, job_id)
    assert isinstance(end, Failed)
    assert (end.error.message, end.error.status) == ("no 0", 400)


async def test_a_deadline_that_cannot_be_met_is_refused_with_the_earliest(jobs: Dispatcher, replicas: Replicas) -> None:
    await submitted(jobs, n=2, user="a")
    with pytest.raises(DeadlineInfeasible, match="240"):
        await jobs.submit(order(deadline_ms=200))
    await jobs.submit(order(deadline_ms=10_000))


async def test_a_deadline_that_passes_expires_the_job(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs, deadline_ms=100)
    event = await last(jobs, job_id)
    assert isinstance(event, Expired)
    assert event.error.code == "deadline_exceeded"
    assert await replicas.settled() == []


async def test_deadlines_without_a_wish_are_soft_and_follow_the_class(jobs: Dispatcher, replicas: Replicas) -> None:
    await submitted(jobs, priority="batch", user="a")
    await submitted(jobs, priority="interactive", user="b")
    await replicas.settled()
    batch, interactive = replicas.tasks
    assert (batch.hard_deadline, interactive.hard_deadline) == (False, False)
    assert batch.deadline_in == pytest.approx(60 * 0.08, abs=0.1)
    assert interactive.deadline_in == pytest.approx(3 * 0.08, abs=0.1)


async def test_a_higher_class_is_placed_first(jobs: Dispatcher, replicas: Replicas) -> None:
    for user in "ab":
        await submitted(jobs, user=user)
    low = await submitted(jobs, priority="batch", user="c")
    high = await submitted(jobs, user="d")
    held = await replicas.settled()
    await replicas.finish(held[0])
    placed = [task.job_id for task in replicas.tasks]
    assert high in placed
    assert low not in placed


async def test_watching_resumes_after_what_was_seen_and_ends(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs)
    (task_id,) = await replicas.settled()
    await replicas.finish(task_id)
    seen = await events_of(jobs, job_id)
    resumed = [event async for event in jobs.watch(job_id, after=seen[-2].seq)]
    assert resumed == [seen[-1]]
    assert isinstance(resumed[0], Terminal)


async def test_unknown_jobs_are_not_found(jobs: Dispatcher) -> None:
    with pytest.raises(NotFound):
        await jobs.cancel("nothing")
    with pytest.raises(NotFound):
        await events_of(jobs, "nothing")


def told_last(jobs: Dispatcher, job_id: str) -> int:
    position = jobs._jobs[job_id].position()
    assert position is not None
    return position[0]


async def test_a_job_far_back_is_not_told_of_every_move(jobs: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    await submitted(jobs, n=SLOTS)
    waiting = [await submitted(jobs, priority="standard", user=user) for user in "ab"]
    monkeypatch.setattr(room, "LONGEST_PAUSE_S", 60.0)
    monkeypatch.setattr(room, "PAUSE_PER_POSITION_S", 60.0)
    told = [told_last(jobs, job_id) for job_id in waiting]
    await submitted(jobs)
    await asyncio.sleep(3 * POSITIONS_EVERY_S)
    assert [told_last(jobs, job_id) for job_id in waiting] == told
    monkeypatch.setattr(room, "LONGEST_PAUSE_S", 0.0)
    async with asyncio.timeout(10):
        while [told_last(jobs, job_id) for job_id in waiting] != [before + 1 for before in told]:
            await asyncio.sleep(0.02)
