"""Several models in one Dispatcher: what is each one's own, and what they share."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.autoscaling import role_of
from serve.errors import ModelNotFound, NotReady, QueueFull
from serve.jobs.dispatcher import Dispatcher
from serve.messages import Failed, JobQuery, Phase, ReplicaState, Started, Succeeded, TaskStepped
from tests.unit.replicas import SLOTS, TIMES, TURBO, Replicas, dispatcher_over, last, order, submitted

BASE = "z-image-base"
TWO = {BASE: {"default_steps": 28, "model_aliases": ["z-image"], "queue": {"max_depth": SLOTS + 3}}}


def beat_of(jobs: Dispatcher, model: str, phase: Phase = Phase.READY) -> None:
    jobs.heartbeat(ReplicaState(replica_id=f"t-{model}", model=model, role="text_encoder", phase=phase))
    jobs.heartbeat(denoiser(model, phase))


def denoiser(model: str, phase: Phase = Phase.READY) -> ReplicaState:
    return ReplicaState(
        replica_id=f"d-{model}", model=model, role="denoiser", phase=phase, slots=SLOTS, step_times=TIMES
    )


@pytest.fixture
async def two(replicas: Replicas, tmp_path: Path) -> AsyncIterator[Dispatcher]:
    jobs = dispatcher_over(replicas, tmp_path, models=TWO)
    await jobs.open()
    for model in (TURBO, BASE):
        beat_of(jobs, model)
    yield jobs
    await jobs.close()


async def full_queue(jobs: Dispatcher, model: str, waiting: int = 3) -> list[str]:
    """All slots are taken, and so many more wait."""
    return [await submitted(jobs, model=model, seed=seed) for seed in range(SLOTS + waiting)]


async def standing(jobs: Dispatcher, replicas: Replicas) -> list[tuple[object, ...]]:
    """Of five jobs of the first model, one after the other: position, length, estimate, and where they are placed."""
    found: list[tuple[object, ...]] = []
    for seed in range(5):
        job = await submitted(jobs, seed=seed)
        view = await jobs.get(job)
        await replicas.settled()
        placed = [task.replica_id for task in replicas.tasks if task.job_id == job]
        found.append((view.position, view.length, round(view.eta_seconds or 0, 3), placed))
    return found


async def test_a_backlog_of_one_moves_nothing_of_the_other(replicas: Replicas, tmp_path: Path) -> None:
    seen = []
    for backlog in (False, True):
        replicas.tasks.clear()
        jobs = dispatcher_over(replicas, tmp_path / str(backlog), models=TWO)
        await jobs.open()
        for model in (TURBO, BASE):
            beat_of(jobs, model)
        if backlog:
            await full_queue(jobs, BASE)
        seen.append(await standing(jobs, replicas))
        await jobs.close()
    assert seen[0] == seen[1]
    assert seen[0][0] == (1, 1, 0.08, [f"d-{TURBO}"])
    assert seen[0][4][3] == []


async def test_each_model_refuses_by_its_own_bound(two: Dispatcher) -> None:
    await full_queue(two, BASE)
    with pytest.raises(QueueFull):
        await submitted(two, model=BASE, seed=99)
    assert await submitted(two, seed=99)
    text = await two.metrics()
    assert f'zimage_refusals_total{{model="{BASE}",reason="queue_full"}} 1.0' in text
    assert f'zimage_refusals_total{{model="{TURBO}",reason="queue_full"}} 0.0' in text


async def test_a_model_that_is_lost_leaves_the_other_going(two: Dispatcher, replicas: Replicas) -> None:
    theirs = await submitted(two, model=BASE)
    await replicas.settled()
    two._pools.of(BASE).lose(f"d-{BASE}")
    job = await submitted(two)
    (task,) = (task for task in await replicas.settled() if task.startswith(job))
    await replicas.finish(task)
    assert isinstance(await last(two, job), Succeeded)
    status = await two.status()
    assert status.ready
    assert (status.models[TURBO].ready, status.models[BASE].ready) == (True, False)
    assert (await two.get(theirs)).position == 1
    beat_of(two, BASE)
    (task,) = (task for task in await replicas.settled() if task.startswith(theirs))
    await replicas.finish(task)
    assert isinstance(await last(two, theirs), Succeeded)


async def test_the_service_is_ready_when_all_models_were(replicas: Replicas, tmp_path: Path) -> None:
    jobs = dispatcher_over(replicas, tmp_path, models=TWO)
    await jobs.open()
    beat_of(jobs, TURBO)
    beat_of(jobs, BASE, Phase.LOADING)
    before = await jobs.status()
    beat_of(jobs, BASE)
    after = await jobs.status()
    await jobs.close()
    assert (before.ready, before.phase, before.models[TURBO].ready) == (False, "loading weights", True)
    assert (after.ready, after.phase, after.denoisers) == (True, "ready", 2)


async def test_a_further_model_takes_no_service_away_while_it_loads(replicas: Replicas, tmp_path: Path) -> None:
    jobs = dispatcher_over(replicas, tmp_path)
    await jobs.open("session")
    beat_of(jobs, TURBO)
    await jobs.close()
    after = dispatcher_over(replicas, tmp_path, models=TWO)
    await after.open("session")
    beat_of(after, TURBO)
    status = await after.status()
    with pytest.raises(NotReady, match=f"{BASE} is starting"):
        await submitted(after, model=BASE)
    await after.close()
    assert (status.ready, status.models[BASE].ready) == (True, False)


async def test_jobs_find_their_model_again(replicas: Replicas, tmp_path: Path) -> None:
    jobs = dispatcher_over(replicas, tmp_path, models=TWO)
    await jobs.open()
    for model in (TURBO, BASE):
        beat_of(jobs, model)
    mine, theirs = [await submitted(jobs, model=model) for model in (TURBO, BASE)]
    await replicas.settled()
    await jobs.close()
    after = dispatcher_over(replicas, tmp_path, models=TWO)
    await after.open()
    beat_of(after, BASE)
    held = await replicas.held_when(1)
    assert [task.split("-")[0] for task in held] == [theirs]
    beat_of(after, TURBO)
    assert {task.split("-")[0] for task in await replicas.held_when(2)} == {mine, theirs}
    await after.close()


async def test_a_job_of_a_model_that_is_gone_fails_and_says_so(replicas: Replicas, tmp_path: Path) -> None:
    jobs = dispatcher_over(replicas, tmp_path, models=TWO)
    await jobs.open()
    beat_of(jobs, BASE)
    job = await submitted(jobs, model=BASE)
    await jobs.close()
    after = dispatcher_over(replicas, tmp_path)
    await after.open()
    end = await last(after, job)
    view = await after.get(job)
    await after.close()
    assert isinstance(end, Failed)
    assert (end.error.code, end.error.status) == ("model_not_found", 404)
    assert BASE in end.error.message
    assert view.error == end.error


async def test_a_job_of_a_former_name_goes_on_under_the_alias(replicas: Replicas, tmp_path: Path) -> None:
    jobs = dispatcher_over(replicas, tmp_path, served_model_name="old")
    await jobs.open()
    beat_of(jobs, "old")
    job = await submitted(jobs, model="old")
    await jobs.close()
    after = dispatcher_over(replicas, tmp_path, model_aliases=["old"])
    await after.open()
    beat_of(after, TURBO)
    (task,) = await replicas.held_when(1)
    await replicas.finish(task)
    assert isinstance(await last(after, job), Succeeded)
    await after.close()


async def test_nobody_gets_a_job_in_for_a_model_that_is_not_there(two: Dispatcher) -> None:
    with pytest.raises(ModelNotFound, match="nope"):
        await two.submit(order(model="nope"))


async def test_a_replica_of_a_model_that_is_gone_is_not_heard(two: Dispatcher) -> None:
    two.heartbeat(denoiser("gone"))
    assert (await two.status()).denoisers == 2


async def test_a_pause_holds_all_models(two: Dispatcher, replicas: Replicas) -> None:
    await two.hold(True)
    for model in (TURBO, BASE):
        await submitted(two, model=model)
    assert await replicas.settled() == []
    await two.hold(False)
    assert len(await replicas.settled()) == 2


async def test_work_is_told_by_role_and_model(two: Dispatcher) -> None:
    await full_queue(two, BASE)
    demand = two.demand()
    assert set(demand) == {"denoiser", "text_encoder", f"denoiser-{BASE}", f"text_encoder-{BASE}"}
    assert (demand["denoiser"].pieces, demand[f"denoiser-{BASE}"].pieces) == (0, SLOTS + 3)


@pytest.mark.parametrize(
    ("deployment", "role"),
    [
        ("Denoiser", "denoiser"),
        (f"Denoiser-{BASE}", f"denoiser-{BASE}"),
        (f"TextEncoder-{BASE}", f"text_encoder-{BASE}"),
        ("Dispatcher", None),
        ("Gateway", None),
    ],
)
def test_deployments_have_the_roles_that_are_told(deployment: str, role: str | None) -> None:
    assert role_of(deployment) == role


async def test_every_gauge_of_a_queue_or_a_fleet_says_of_which_model(two: Dispatcher) -> None:
    await full_queue(two, BASE)
    text = await two.metrics()
    for name in ("queue_oldest_age_seconds", "jobs_running", "backlog_gpu_seconds", "ready"):
        assert set(re.findall(rf'^zimage_{name}{{model="([^"]+)"}}', text, re.MULTILINE)) == {TURBO, BASE}
    assert f'zimage_queue_depth{{model="{BASE}",priority="interactive"}} 5.0' in text
    assert f'zimage_queue_depth{{model="{TURBO}",priority="interactive"}} 0.0' in text
    assert f'zimage_replicas{{deployment="Denoiser",model="{BASE}",phase="ready"}} 1.0' in text
    assert f'nv_inference_pending_request_count{{model="denoiser-{BASE}",version="1"}} 3.0' in text


async def test_a_picture_counts_for_its_model(two: Dispatcher, replicas: Replicas) -> None:
    job = await submitted(two, model=BASE)
    (task,) = await replicas.settled()
    await replicas.finish(task)
    await last(two, job)
    counts = {name: of.inferences for name, of in (await two.statistics()).items()}
    assert counts[BASE] == counts[f"denoiser-{BASE}"] == 1
    assert counts[TURBO] == counts["denoiser"] == 0
    assert f'zimage_jobs_total{{model="{BASE}",priority="interactive",status="succeeded"}} 1.0' in await two.metrics()


async def test_progress_reaches_the_job_of_any_model(two: Dispatcher, replicas: Replicas) -> None:
    job = await submitted(two, model=BASE)
    (task,) = await replicas.settled()
    two.report([TaskStepped(task_id=task, step=1, at=0.0)])
    assert any(isinstance(event, Started) for event in (await two.listen(job, print, 0)).events)


async def test_jobs_of_all_models_are_in_one_list_and_cancelled_by_id(two: Dispatcher) -> None:
    made = {await submitted(two, model=model) for model in (TURBO, BASE)}
    assert {view.id for view in await two.find(JobQuery(user="u"))} == made
    assert {view.id for view in await two.active(10)} == made
    for job in made:
        await two.cancel(job)
    assert {(await two.get(job)).status for job in made} <= {"canceled", "canceling"}
