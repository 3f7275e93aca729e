from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from serve.jobs import memory
from serve.jobs.job import Job
from serve.jobs.memory import Memory
from serve.jobs.record import JobRecord
from serve.jobs.store import store_of
from serve.messages import JobQuery, JobStatus
from serve.settings import Settings
from tests.unit.replicas import order


def record(status: JobStatus = JobStatus.QUEUED) -> JobRecord:
    return JobRecord(submission=order(), created_at=time.time(), status=status)


async def test_a_page_is_full_although_the_store_is_behind(tmp_path: Path) -> None:
    store = store_of(Settings(data=tmp_path))
    await store.open()
    queued = [await store.add(record()) for _ in range(5)]
    jobs = Memory(time.monotonic)
    for ended in queued[1:4]:
        done = replace(ended, status=JobStatus.CANCELED, completed_at=time.time())
        jobs[ended.id] = Job.restored(done)
    query = JobQuery(statuses=frozenset({JobStatus.QUEUED}), limit=2)  # the newest and the oldest
    ids = sorted((job.id for job in queued), reverse=True)
    still = [job_id for job_id in ids if job_id not in jobs]
    assert [view.id for view in await jobs.find(store, query)] == still
    await store.close()


def test_ended_jobs_are_kept_for_a_while_and_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    jobs = Memory(lambda: now)
    monkeypatch.setattr(memory, "KEEP_FINISHED", 2)
    ended = [replace(record(JobStatus.CANCELED), completed_at=1.0) for _ in range(4)]
    for each in ended[:3]:
        jobs.remember(each)
    assert list(jobs) == [each.id for each in ended[1:3]]
    now = memory.KEEP_FINISHED_S + 1
    jobs.remember(ended[3])
    assert list(jobs) == [ended[3].id]
