"""Replicas that are stopped on purpose: no work is lost with them, nobody is blamed; and the last one may be one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve.jobs.dispatcher import Dispatcher
from serve.jobs.fleet import ReplicaGone
from serve.jobs.wake import LEAST_S, PROCESS_S, Sleepers
from serve.messages import Canceled, Phase, Queued, ReplicaState, Succeeded
from tests.unit.replicas import SLOTS, STEP_S, TIMES, Replicas, beat, dispatcher_over, last, order, submitted

SOLO_S = 8 * STEP_S
WARMUP_S = 20.0


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


@pytest.fixture
async def jobs(replicas: Replicas, tmp_path: Path) -> AsyncIterator[Dispatcher]:
    dispatcher = dispatcher_over(replicas, tmp_path)
    await dispatcher.open("session")
    beat(dispatcher)
    yield dispatcher
    await dispatcher.close()


def denoiser(id: str, phase: Phase = Phase.READY, warmup_s: float | None = WARMUP_S) -> ReplicaState:
    return ReplicaState(replica_id=id, role="denoiser", phase=phase, slots=SLOTS, step_times=TIMES, warmup_s=warmup_s)


async def restarts(jobs: Dispatcher) -> float:
    found = re.search(
        r'zimage_replica_restarts_total\{deployment="Denoiser",model="[^"]+"\} (\S+)', await jobs.metrics()
    )
    assert found is not None
    return float(found[1])


async def test_one_that_stops_finishes_what_it_has_and_gets_nothing_more(jobs: Dispatcher, replicas: Replicas) -> None:
    first = await submitted(jobs)
    (held,) = await replicas.settled()
    jobs.heartbeat(denoiser("d1", Phase.STOPPING))
    second = await submitted(jobs)
    assert await replicas.settled() == [held]
    await replicas.finish(held)
    jobs.heartbeat(denoiser("d2"))
    await replicas.finish((await replicas.settled())[0])
    ends = [await last(jobs, job_id) for job_id in (first, second)]
    assert all(isinstance(end, Succeeded) for end in ends)
    assert [(task.replica_id, task.attempt) for task in replicas.tasks] == [("d1", 1), ("d2", 1)]
    jobs.leave("d1")
    assert await restarts(jobs) == 0


async def test_what_it_could_not_finish_goes_elsewhere_and_is_no_loss(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await submitted(jobs)
    for stopped in ("d1", "d2", "d3", "d4", "d5"):  # more often than a job may lose its replica
        jobs.heartbeat(denoiser(stopped))
        (held,) = await replicas.held_when(1)
        jobs.heartbeat(denoiser(stopped, Phase.STOPPING))
        await replicas.fail(held, ReplicaGone(stopped, killed=True))
    jobs.heartbeat(denoiser("d6"))
    (held,) = await replicas.held_when(1)
    await replicas.finish(held)
    assert isinstance(await last(jobs, job_id), Succeeded)
    assert (await jobs.get(job_id)).attempt == 6
    assert await restarts(jobs) == 0


@pytest.mark.parametrize(
    ("phase", "killed"), [(Phase.READY, False), (Phase.READY, True), (Phase.STOPPING, False), (Phase.LOST, True)]
)
async def test_one_that_dies_is_a_loss_still(phase: Phase, killed: bool, jobs: Dispatcher, replicas: Replicas) -> None:
    """Withdrawn by Ray Serve, too: it does that with replicas of a node that is gone."""
    job_id = await submitted(jobs)
    (held,) = await replicas.settled()
    jobs.heartbeat(denoiser("d1", phase))
    await replicas.fail(held, ReplicaGone("d1", killed=killed))
    assert await restarts(jobs) == 1
    assert (await jobs.get(job_id)).attempt == 2


async def test_what_was_said_before_the_last_word_and_arrives_after_it_is_ignored(jobs: Dispatcher) -> None:
    jobs.leave("d1")
    jobs.heartbeat(denoiser("d1"))
    assert (await jobs.status()).denoisers == 0


@pytest.mark.parametrize(("dead", "denoisers"), [(True, 0), (False, 1)])
async def test_what_ray_has_given_up_is_given_no_work_though_its_process_lives_on(
    dead: bool, denoisers: int, jobs: Dispatcher, replicas: Replicas
) -> None:
    """A node that was cut off from the control plane, and not from the Dispatcher."""
    job_id = await submitted(jobs)
    (held,) = await replicas.settled()
    await replicas.fail(held, ReplicaGone("d1", dead=dead))
    jobs.heartbeat(denoiser("d1"))
    assert (await jobs.status()).denoisers == denoisers
    assert (await jobs.get(job_id)).attempt == 2
    assert await restarts(jobs) == 1


async def test_what_a_replica_held_that_is_given_up_is_drawn_elsewhere(jobs: Dispatcher, replicas: Replicas) -> None:
    """Its process may end it all the same: nobody hears of that."""
    job_id = await submitted(jobs)
    await replicas.settled()
    for _ in range(200):  # it lives on for a while
        jobs.give_up("d1")
        jobs.heartbeat(denoiser("d1"))
    assert (await jobs.status()).denoisers == 0
    assert await replicas.settled() == []
    jobs.heartbeat(denoiser("d2"))
    (held,) = await replicas.held_when(1)
    await replicas.finish(held)
    assert isinstance(await last(jobs, job_id), Succeeded)
    assert [(task.replica_id, task.attempt) for task in replicas.tasks] == [("d1", 1), ("d2", 2)]
    assert await restarts(jobs) == 1


async def placed_at_this_moment(jobs: Dispatcher) -> str:
    """On d1; nothing of it has been done yet."""
    jobs.withdraw("d1")
    job_id = await submitted(jobs)
    jobs.heartbeat(denoiser("d1"))
    return job_id


async def test_what_was_placed_at_the_moment_of_a_loss_is_drawn_elsewhere(jobs: Dispatcher, replicas: Replicas) -> None:
    job_id = await placed_at_this_moment(jobs)
    jobs.give_up("d1")
    jobs.heartbeat(denoiser("d2"))
    await replicas.settled()
    (held,) = await replicas.held_when(1)
    await replicas.finish(held)
    assert isinstance(await last(jobs, job_id), Succeeded)


async def test_what_is_cancelled_at_the_moment_that_it_is_placed_leaves_its_slot(jobs: Dispatcher) -> None:
    for _ in range(SLOTS + 1):
        job_id = await placed_at_this_moment(jobs)
        await jobs.cancel(job_id)
        assert isinstance(await last(jobs, job_id), Canceled)
    stats = await jobs.stats()
    assert [view.placed for view in stats.replicas if view.state.role == "denoiser"] == [0]


async def test_one_that_is_withdrawn_stops_from_that_moment_on(jobs: Dispatcher, replicas: Replicas) -> None:
    first = await submitted(jobs)
    (held,) = await replicas.settled()
    jobs.withdraw("d1")
    jobs.withdraw("nobody")
    await submitted(jobs)
    assert await replicas.settled() == [held]
    await replicas.finish(held)
    assert isinstance(await last(jobs, first), Succeeded)
    assert await restarts(jobs) == 0


async def test_while_the_last_one_stops_work_is_taken_in(jobs: Dispatcher) -> None:
    """In a deploy Ray Serve withdraws the old ones before it lists the new ones."""
    jobs.withdraw("d1")
    status = await jobs.status()
    assert (status.ready, status.denoisers) == (True, 0)
    await submitted(jobs)


async def test_ones_that_left_stay_known_however_often_another_is_given_up(jobs: Dispatcher) -> None:
    jobs.leave("d1")
    for _ in range(200):
        jobs.give_up("d2")
    jobs.heartbeat(denoiser("d1"))
    assert (await jobs.status()).denoisers == 0


async def asleep(jobs: Dispatcher) -> None:
    jobs.heartbeat(denoiser("d1"))
    jobs.leave("d1")


async def test_scaled_to_zero_it_takes_work_and_says_when_it_is_done(jobs: Dispatcher, replicas: Replicas) -> None:
    await asleep(jobs)
    status = await jobs.status()
    assert (status.ready, status.phase, status.denoisers) == (True, "asleep", 0)
    assert status.eta_seconds == WARMUP_S + PROCESS_S
    job_id = await submitted(jobs)
    eta = (await jobs.get(job_id)).eta_seconds
    assert eta == pytest.approx(WARMUP_S + PROCESS_S + SOLO_S, abs=0.5)
    jobs.heartbeat(denoiser("d2", Phase.LOADING))
    assert (await jobs.status()).ready
    assert await replicas.settled() == []
    jobs.heartbeat(denoiser("d2"))
    await replicas.finish((await replicas.settled())[0])
    assert isinstance(await last(jobs, job_id), Succeeded)
    assert (await jobs.status()).phase == "ready"


async def test_a_deadline_before_the_first_replica_is_up_is_refused(jobs: Dispatcher) -> None:
    await asleep(jobs)
    with pytest.raises(Exception, match="the earliest feasible is 25"):
        await jobs.submit(order(deadline_ms=2000))
    await jobs.submit(order(deadline_ms=60_000))


async def test_what_dies_is_not_asleep(jobs: Dispatcher, replicas: Replicas) -> None:
    await submitted(jobs)
    await replicas.fail((await replicas.settled())[0], ReplicaGone("d1"))
    assert not (await jobs.status()).ready


@pytest.mark.parametrize(("session", "ready"), [("session", True), ("another", False), ("", False)])
async def test_the_next_dispatcher_of_the_same_ray_knows_who_sleeps(
    session: str, ready: bool, replicas: Replicas, tmp_path: Path
) -> None:
    before = dispatcher_over(replicas, tmp_path)
    await before.open("session")
    beat(before)
    await asleep(before)
    await asyncio.sleep(0.1)
    await before.close()
    after = dispatcher_over(replicas, tmp_path)
    await after.open(session)
    after.heartbeat(ReplicaState(replica_id="t1", role="text_encoder", phase=Phase.READY))
    assert ((await after.status()).ready, after._pools.first.fleet.was_ready) == (ready, ready)
    if ready:
        job_id = await submitted(after)
        events = after.watch(job_id)
        queued = await anext(events)
        assert isinstance(queued, Queued)
        assert queued.eta_seconds == pytest.approx(WARMUP_S + PROCESS_S + SOLO_S, abs=0.5)
    await after.close()


async def test_a_dispatcher_that_is_replaced_with_all_replicas_refuses_nobody(
    replicas: Replicas, tmp_path: Path
) -> None:
    """In a deploy: the old one ended first, and has not heard that they end, too."""
    before = dispatcher_over(replicas, tmp_path)
    await before.open("session")
    beat(before)
    before.heartbeat(denoiser("d1"))
    await before.hand_back()
    before.heartbeat(denoiser("d1"))  # it lives on for a moment
    await before.close()
    after = dispatcher_over(replicas, tmp_path)
    await after.open("session")
    status = await after.status()
    assert (status.ready, status.phase, status.denoisers, status.text_encoders) == (True, "asleep", 0, 0)
    job_id = await submitted(after)
    beat(after)
    await replicas.finish((await replicas.settled())[0])
    assert isinstance(await last(after, job_id), Succeeded)
    assert (await after.status()).phase == "ready"
    await after.close()


async def test_one_that_was_never_ready_hands_nothing_over(replicas: Replicas, tmp_path: Path) -> None:
    for _ in range(2):
        dispatcher = dispatcher_over(replicas, tmp_path)
        await dispatcher.open("session")
        assert not (await dispatcher.status()).ready
        dispatcher.heartbeat(denoiser("d1"))  # and no TextEncoder
        await dispatcher.close()


def test_a_start_that_was_seen_counts_more_than_the_warm_up() -> None:
    sleepers = Sleepers()
    sleepers.awake("denoiser", 20.0, now=0.0)
    assert sleepers.wait_s(0.0) == 0.0
    sleepers.asleep("denoiser")
    assert sleepers.wait_s(10.0) == 20.0 + PROCESS_S
    sleepers.call(10.0, work=True)
    sleepers.call(12.0, work=True)
    assert sleepers.wait_s(14.0) == 20.0 + PROCESS_S - 4.0
    assert sleepers.wait_s(99.0) == LEAST_S
    sleepers.awake("denoiser", 20.0, now=40.0)
    sleepers.asleep("denoiser")
    assert sleepers.wait_s(50.0) == 30.0


def test_nobody_waits_any_more() -> None:
    sleepers = Sleepers()
    sleepers.asleep("denoiser")
    assert sleepers.wait_s(0.0) is None, "never measured"
    sleepers.call(0.0, work=True)
    sleepers.call(1.0, work=False)
    sleepers.restore({"denoiser": 7.0})
    assert sleepers.wait_s(100.0) == 7.0


async def test_one_that_fails_to_start_is_not_taken_for_asleep(replicas: Replicas, tmp_path: Path) -> None:
    """Ray Serve ends it as it ends one that is not wanted any more."""
    jobs = dispatcher_over(replicas, tmp_path)
    await jobs.open("session")
    jobs.heartbeat(ReplicaState(replica_id="t1", role="text_encoder", phase=Phase.READY))
    jobs.heartbeat(denoiser("d1", Phase.WARMING_UP))
    jobs.leave("d1")
    status = await jobs.status()
    assert (status.ready, status.phase) == (False, "starting")
    await jobs.close()


async def test_a_start_that_fails_in_the_place_of_the_last_one_keeps_the_work_waiting(jobs: Dispatcher) -> None:
    """Another one is tried."""
    jobs.heartbeat(denoiser("d2", Phase.LOADING))
    jobs.leave("d1")
    assert (await jobs.status()).ready
    jobs.leave("d2")
    assert (await jobs.status()).ready
