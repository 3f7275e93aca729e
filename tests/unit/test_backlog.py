"""The work that waits, in GPU-seconds, as the Dispatcher tells it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from serve.errors import DeadlineInfeasible
from serve.jobs.backlog import Backlog
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.fleet import Fleet
from serve.messages import Generated, Phase, ReplicaState, StoredImage, TaskStepped
from tests.unit.replicas import SLOTS, STEP_S, TIMES, Replicas, beat, order, submitted

SOLO_S = 8 * STEP_S
DENOISER = ReplicaState(replica_id="d1", role="denoiser", phase=Phase.READY, slots=SLOTS)


async def test_what_waits_and_what_runs_counts(jobs: Dispatcher, replicas: Replicas) -> None:
    assert jobs.demand()["denoiser"].backlog_s == 0
    await submitted(jobs, n=5)
    await submitted(jobs, priority="batch")
    held = await replicas.settled()
    demand = jobs.demand()["denoiser"]
    assert (demand.backlog_s, demand.pieces) == (pytest.approx(6 * SOLO_S), 6)
    assert (demand.busy, demand.ready) == (1, 1)
    await replicas.finish(held[0])
    assert jobs.demand()["denoiser"].backlog_s == pytest.approx(5 * SOLO_S)


async def test_the_work_of_a_controlnet_counts_in_backlog_deadlines_and_estimates(jobs: Dispatcher) -> None:
    jobs.heartbeat(denoiser := replace(DENOISER, step_times=TIMES | {"controlnets": {"lines": 1.5}}))
    plain = order()
    lines = replace(plain.request, controlnet="lines", control_image="a" * 64)
    with pytest.raises(DeadlineInfeasible, match="the earliest feasible is 120"):
        await jobs.submit(replace(plain, request=lines, deadline_ms=100))
    await jobs.submit(replace(plain, request=lines))
    assert jobs.demand()["denoiser"].backlog_s == pytest.approx(1.5 * SOLO_S)
    jobs.heartbeat(replace(denoiser, step_times=TIMES | {"controlnets": {"lines": 2.0}}))  # as it has learned
    with pytest.raises(DeadlineInfeasible, match="the earliest feasible is 280"):  # behind the one that is there
        await jobs.submit(replace(order(deadline_ms=100), request=lines))


async def test_pictures_that_another_job_draws_are_no_work(jobs: Dispatcher, replicas: Replicas) -> None:
    beat(jobs, engine="e")
    for _ in range(SLOTS + 1):
        await submitted(jobs, seeded=True)
    await replicas.settled()
    assert jobs.demand()["denoiser"].pieces == 1


async def test_prompts_that_are_not_encoded_wait_for_the_text_encoder(jobs: Dispatcher, replicas: Replicas) -> None:
    for _ in range(SLOTS + 3):
        await submitted(jobs)
    submission = order()
    await jobs.submit(replace(submission, request=replace(submission.request, guidance=3.0)))
    held = await replicas.settled()
    assert jobs.demand()["text_encoder"].pieces == SLOTS + 3 + 2
    jobs.report([TaskStepped(task_id=task_id, step=0, at=time.time()) for task_id in held])
    assert jobs.demand()["text_encoder"].pieces == 3 + 2


def answer(encode_s: float, encodings: float) -> Generated:
    image = StoredImage(asset_id="a", seed=1, width=64, height=64, format="png", bytes=1)
    return Generated(image=image, started_at=0.0, encode_s=encode_s, denoise_s=1.0, decode_s=0.0, encodings=encodings)


def test_the_text_encoder_is_busy_for_its_share_of_batches() -> None:
    now = [0.0]
    backlog = Backlog(Fleet(2.0), lambda: [], lambda: now[0])
    for _ in range(4):
        backlog.generated(answer(encode_s=0.2, encodings=0.25), prompts=1)
    backlog.generated(answer(encode_s=0.0, encodings=0.0), prompts=1)  # it remembered the prompt
    now[0] = 1.0
    assert backlog.measure()["text_encoder"].busy == pytest.approx(0.2)
    now[0] = 2.0
    assert backlog.measure()["text_encoder"].busy == 0.0
