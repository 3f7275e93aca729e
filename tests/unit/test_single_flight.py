"""Identical jobs over replicas that answer when the test says so: drawn once, answered each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve.errors import DeadlineExceeded, InvalidRequest, NotFound, QueueFull
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.fleet import ReplicaGone
from serve.messages import (
    Canceled,
    Expired,
    Failed,
    JobStatus,
    Preview,
    Progress,
    Queued,
    Started,
    Succeeded,
    TaskPreview,
    TaskStepped,
)
from tests.unit.replicas import Drawing, beat, dispatcher_over, events_of, last, order, submitted


@pytest.fixture
def replicas(tmp_path: Path) -> Drawing:
    return Drawing(tmp_path)


@pytest.fixture
async def jobs(replicas: Drawing, tmp_path: Path) -> AsyncIterator[Dispatcher]:
    dispatcher = dispatcher_over(replicas, tmp_path, queue={"max_depth": 8, "max_depth_per_user": 6})
    await dispatcher.open()
    beat(dispatcher, engine="e1")
    yield dispatcher
    await dispatcher.close()


def begin(jobs: Dispatcher, task_id: str, step: int = 1) -> None:
    jobs.report([TaskStepped(task_id=task_id, step=step, at=time.time())])


async def same(jobs: Dispatcher, number: int = 1, **how: object) -> list[str]:
    return [await submitted(jobs, seeded=True, **how) for _ in range(number)]


async def drawn(jobs: Dispatcher, job_id: str) -> Succeeded:
    end = await last(jobs, job_id)
    assert isinstance(end, Succeeded), end
    return end


async def test_many_at_once_cost_one_generation_and_get_an_answer_each(jobs: Dispatcher, replicas: Drawing) -> None:
    ids = await asyncio.gather(*(submitted(jobs, seeded=True) for _ in range(6)))
    (task_id,) = await replicas.settled()
    await replicas.finish(task_id)
    ends = [await drawn(jobs, job_id) for job_id in ids]
    assert sorted(end.cache for end in ends) == ["join"] * 5 + ["miss"]
    assert [end.images[0].asset_id for end in ends] == [f"{job_id}-0" for job_id in ids]
    assert {await replicas.bytes_of(end) for end in ends} == {await replicas.bytes_of(ends[0])}
    assert len(replicas.tasks) == 1


async def test_followers_hear_of_position_progress_and_previews(jobs: Dispatcher, replicas: Drawing) -> None:
    leader, follower = await same(jobs, 2, previews=1)
    (task_id,) = await replicas.settled()
    begin(jobs, task_id, 3)
    (late,) = await same(jobs, previews=1)
    jobs.report([TaskPreview(task_id=task_id, index=0, key=f"{leader}/0-0")])
    await replicas.finish(task_id)
    for job_id in (follower, late):
        events = await events_of(jobs, job_id)
        assert [type(event) for event in events] == [Queued, Started, Preview, Progress, Succeeded]
        assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert (await jobs.get(late)).step == 8


async def test_who_wants_previews_does_not_join_one_without(jobs: Dispatcher, replicas: Drawing) -> None:
    await same(jobs)
    await same(jobs, previews=2)
    assert len(await replicas.settled()) == 2


@pytest.mark.parametrize(
    "other", [{"seeded": False}, {"cache": "skip"}, {"user": "v"}, {"n": 2}, {"seed": 6}, {"output_format": "webp"}]
)
async def test_what_is_not_the_same_is_drawn_by_itself(
    jobs: Dispatcher, replicas: Drawing, other: dict[str, object]
) -> None:
    await same(jobs)
    second = await submitted(jobs, **{"seeded": True} | other)  # type: ignore[arg-type]
    while held := await replicas.settled():
        await replicas.finish(held[0])
    assert (await drawn(jobs, second)).cache == "miss"


async def test_users_share_when_configured(replicas: Drawing, tmp_path: Path) -> None:
    jobs = dispatcher_over(replicas, tmp_path, cache={"shared": True})
    await jobs.open()
    beat(jobs, engine="e1")
    first, second = await submitted(jobs, seeded=True), await submitted(jobs, seeded=True, user="v")
    (task_id,) = await replicas.settled()
    await replicas.finish(task_id)
    assert ((await drawn(jobs, first)).cache, (await drawn(jobs, second)).cache) == ("miss", "join")
    third = await submitted(jobs, seeded=True, user="w")
    assert (await drawn(jobs, third)).cache == "hit"
    await jobs.close()


async def test_a_cancelled_follower_stops_nobody(jobs: Dispatcher, replicas: Drawing) -> None:
    leader, follower = await same(jobs, 2)
    (task_id,) = await replicas.settled()
    begin(jobs, task_id)
    await jobs.cancel(follower)
    assert isinstance(await last(jobs, follower), Canceled)
    await replicas.finish(task_id)
    assert (await drawn(jobs, leader)).cache == "miss"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelled_leader_leaves_its_work_to_a_follower(
    jobs: Dispatcher, replicas: Drawing, begun: bool
) -> None:
    leader, heir, other = await same(jobs, 3)
    (task_id,) = await replicas.settled()
    if begun:
        begin(jobs, task_id)
    await jobs.cancel(leader)
    assert isinstance(await last(jobs, leader), Canceled)
    assert await replicas.settled() == [task_id]
    if begun:
        begin(jobs, task_id, 5)
        assert (await jobs.get(other)).step == 5
    await replicas.finish(task_id)
    ends = [await drawn(jobs, job_id) for job_id in (heir, other)]
    assert [end.cache for end in ends] == ["miss", "join"]
    assert [end.images[0].asset_id for end in ends] == [f"{heir}-0", f"{other}-0"]
    with pytest.raises(NotFound):
        await replicas.assets.stat(f"{leader}-0")
    assert len(replicas.tasks) == 1
    assert (await drawn(jobs, (await same(jobs))[0])).cache == "hit"


async def test_the_last_to_leave_stops_the_work(jobs: Dispatcher, replicas: Drawing) -> None:
    ids = await same(jobs, 3)
    (task_id,) = await replicas.settled()
    begin(jobs, task_id)
    for job_id in ids:
        assert await replicas.settled() == [task_id]
        await jobs.cancel(job_id)
    assert [type(await last(jobs, job_id)) for job_id in ids] == [Canceled] * 3
    assert await replicas.settled() == []


async def test_nobody_joins_what_is_being_stopped(jobs: Dispatcher, replicas: Drawing) -> None:
    (first,) = await same(jobs)
    (task_id,) = await replicas.settled()
    begin(jobs, task_id)
    cancelling = asyncio.create_task(jobs.cancel(first))
    (second,) = await same(jobs)
    await cancelling
    assert isinstance(await last(jobs, first), Canceled)
    await replicas.finish((await replicas.settled())[0])
    assert (await drawn(jobs, second)).cache == "miss"


async def test_a_failed_leader_fails_its_followers(jobs: Dispatcher, replicas: Drawing) -> None:
    ids = await same(jobs, 3)
    (task_id,) = await replicas.settled()
    await replicas.fail(task_id, InvalidRequest("too large for this GPU", param="size"))
    ends = [await last(jobs, job_id) for job_id in ids]
    assert all(isinstance(end, Failed) and end.error.message == "too large for this GPU" for end in ends)


@pytest.mark.parametrize("dropped_by_replica", [False, True])
async def test_a_leaders_deadline_is_its_own(jobs: Dispatcher, replicas: Drawing, dropped_by_replica: bool) -> None:
    (leader,) = await same(jobs, deadline_ms=10_000 if dropped_by_replica else 300)
    (follower,) = await same(jobs)
    (task_id,) = await replicas.settled()
    begin(jobs, task_id)
    if dropped_by_replica:
        await replicas.fail(task_id, DeadlineExceeded("too late"))
    assert isinstance(await last(jobs, leader), Expired)
    await replicas.finish((await replicas.settled())[0])
    assert (await drawn(jobs, follower)).images[0].asset_id == f"{follower}-0"
    assert len(replicas.tasks) == 1 + dropped_by_replica


async def test_a_replica_that_drops_inherited_work_at_the_old_deadline_gets_it_again(
    jobs: Dispatcher, replicas: Drawing
) -> None:
    (leader,), (follower,) = await same(jobs, deadline_ms=10_000), await same(jobs)
    (task_id,) = await replicas.settled()
    await jobs.cancel(leader)
    await replicas.fail(task_id, DeadlineExceeded("too late"))
    (again,) = await replicas.settled()
    assert replicas.tasks[-1].hard_deadline is False
    await replicas.finish(again)
    assert (await drawn(jobs, follower)).cache == "miss"


async def test_a_follower_has_a_deadline_of_its_own(jobs: Dispatcher, replicas: Drawing) -> None:
    (leader,), (follower,) = await same(jobs), await same(jobs, deadline_ms=100)
    assert isinstance(await last(jobs, follower), Expired)
    (task_id,) = await replicas.settled()
    await replicas.finish(task_id)
    assert (await drawn(jobs, leader)).cache == "miss"


async def test_a_lost_replica_is_counted_once_for_whoever_leads(jobs: Dispatcher, replicas: Drawing) -> None:
    leader, heir = await same(jobs, 2)
    (task_id,) = await replicas.settled()
    await replicas.fail(task_id, ReplicaGone("d1"))
    beat(jobs, "d2", engine="e1")
    await replicas.settled()
    await jobs.cancel(leader)
    for number in (2, 3):
        (task_id,) = await replicas.settled()
        beat(jobs, f"d{number + 1}", engine="e1")
        await replicas.fail(task_id, ReplicaGone(replicas.tasks[-1].replica_id))
    end = await last(jobs, heir)
    assert isinstance(end, Failed)
    assert end.error.code == "replica_lost"


async def test_a_higher_class_takes_the_lead_of_what_waits(jobs: Dispatcher, replicas: Drawing) -> None:
    for user in "ab":
        await submitted(jobs, user=user)
    (low,) = await same(jobs, priority="batch")
    await submitted(jobs, user="c", priority="standard")
    (high,) = await same(jobs, priority="interactive")
    assert ((await jobs.get(high)).position, (await jobs.get(low)).position) == (3, 3)
    held = await replicas.settled()
    await replicas.finish(held[0])
    assert replicas.tasks[-1].job_id == high
    await jobs.cancel(high)
    await replicas.finish((await replicas.settled())[-1])
    assert (await drawn(jobs, low)).cache == "miss"


async def test_a_higher_class_does_not_wait_for_what_a_lower_one_has_begun(jobs: Dispatcher, replicas: Drawing) -> None:
    (low,) = await same(jobs, priority="batch")
    (high,) = await same(jobs, priority="interactive")
    (last_one,) = await same(jobs, priority="standard")
    held = await replicas.settled()
    assert len(held) == 2
    await replicas.finish(held[1])
    assert [(await drawn(jobs, job_id)).cache for job_id in (high, last_one)] == ["miss", "join"]
    await replicas.finish(held[0])
    assert (await drawn(jobs, low)).cache == "miss"


async def test_an_heir_waits_in_its_own_place(jobs: Dispatcher, replicas: Drawing) -> None:
    await submitted(jobs, n=2, user="a")
    first = await submitted(jobs, seeded=True)
    between = await submitted(jobs)
    heir = await submitted(jobs, seeded=True)
    await jobs.cancel(first)
    await asyncio.sleep(0.5)
    assert ((await jobs.get(between)).position, (await jobs.get(heir)).position) == (2, 3)


async def test_followers_count_in_the_bounds_of_the_queue(jobs: Dispatcher, replicas: Drawing) -> None:
    await same(jobs, 6)
    with pytest.raises(QueueFull, match="6 may"):
        await jobs.submit(order(seeded=True))


async def test_a_follower_whose_leaders_picture_is_deleted_at_once_is_drawn_by_itself(
    jobs: Dispatcher, replicas: Drawing
) -> None:
    leader, follower = await same(jobs, 2)
    replicas.assets.links.clear()
    await replicas.finish((await replicas.settled())[0])
    await jobs.delete(leader)
    await replicas.assets.delete(f"{leader}-0")
    replicas.assets.links.set()
    await asyncio.sleep(0.1)
    await replicas.finish((await replicas.settled())[0])
    end = await drawn(jobs, follower)
    assert (end.cache, end.images[0].asset_id) == ("miss", f"{follower}-0")
    assert await replicas.bytes_of(end) == f"{follower}-0.1".encode()


async def test_an_heir_whose_inherited_picture_was_deleted_draws_it_again(jobs: Dispatcher, replicas: Drawing) -> None:
    leader, heir = await same(jobs, 2, n=2)
    first, second = await replicas.settled()
    await replicas.finish(first)
    await jobs.delete(leader)
    await replicas.assets.delete(f"{leader}-0")
    await replicas.finish(second)
    await asyncio.sleep(0.1)
    await replicas.finish((await replicas.settled())[0])
    end = await drawn(jobs, heir)
    assert [image.asset_id for image in end.images] == [f"{heir}-0", f"{heir}-1"]
    assert await replicas.bytes_of(end) == f"{heir}-0.1{leader}-1.1".encode()


async def test_leaders_and_followers_find_each_other_after_a_restart(tmp_path: Path) -> None:
    before = Drawing(tmp_path)
    jobs = dispatcher_over(before, tmp_path)
    await jobs.open()
    beat(jobs, engine="e1")
    ids = await same(jobs, 4)
    begin(jobs, (await before.settled())[0])
    await jobs.cancel(ids[1])
    await jobs.close()
    after = Drawing(tmp_path)
    jobs = dispatcher_over(after, tmp_path)
    await jobs.open()
    beat(jobs, engine="e1")
    (task_id,) = await after.held_when(1)
    (newcomer,) = await same(jobs)
    await after.finish(task_id)
    ends = [await drawn(jobs, job_id) for job_id in (ids[0], *ids[2:], newcomer)]
    assert [end.cache for end in ends] == ["miss", "join", "join", "join"]
    assert (await jobs.get(ids[1])).status is JobStatus.CANCELED
    assert len(after.tasks) == 1
    await jobs.close()


async def test_a_follower_whose_leader_had_ended_before_the_restart_gets_its_pictures(tmp_path: Path) -> None:
    before = Drawing(tmp_path)
    jobs = dispatcher_over(before, tmp_path)
    await jobs.open()
    beat(jobs, engine="e1")
    leader, follower = await same(jobs, 2)
    before.assets.links.clear()  # the follower's pictures are never linked
    await before.finish((await before.settled())[0])
    await drawn(jobs, leader)
    await jobs.close()
    after = Drawing(tmp_path)
    jobs = dispatcher_over(after, tmp_path)
    await jobs.open()
    assert (await drawn(jobs, follower)).cache == "join"
    assert after.tasks == []
    await jobs.close()
