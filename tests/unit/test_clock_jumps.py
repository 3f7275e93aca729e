"""The wall clock is put back or forward: people are still told where they stand, and nothing took less than no time."""

from __future__ import annotations

import asyncio
import time

import pytest

from serve.jobs.dispatcher import Dispatcher
from serve.messages import Queued, Succeeded
from tests.unit.replicas import SLOTS, Replicas, last, submitted

DAY_S = 86_400.0
pytestmark = pytest.mark.parametrize("jump_s", [-DAY_S, DAY_S])


def jump(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + seconds)


async def test_positions_are_told_after_a_jump(
    jobs: Dispatcher, replicas: Replicas, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    for _ in range(SLOTS + 1):
        await submitted(jobs, user="a")
    waiting = await submitted(jobs, user="b")
    events = aiter(jobs.watch(waiting))
    first = await anext(events)
    assert isinstance(first, Queued)
    jump(jump_s, monkeypatch)
    for task_id in await replicas.held_when(SLOTS):
        await replicas.finish(task_id)
    async with asyncio.timeout(7):  # long before its replica is thought to be silent, which is told in any case
        moved = await anext(events)
    assert isinstance(moved, Queued)
    assert moved.position < first.position


async def test_nothing_takes_less_than_no_time(
    jobs: Dispatcher, replicas: Replicas, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    job_id = await submitted(jobs)
    jump(jump_s, monkeypatch)
    await replicas.finish((await replicas.held_when(1))[0])
    end = await last(jobs, job_id)
    assert isinstance(end, Succeeded)
    assert end.timings.total_ms >= 0
    assert end.timings.queue_ms >= 0
    stats = await jobs.stats()
    assert stats.response_s is not None
    assert stats.response_s >= 0
    assert "zimage_request_duration_seconds_sum" in await jobs.metrics()
