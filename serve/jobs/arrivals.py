"""A submission's way in: a repetition, an answer from the cache, a refusal, or a job; one, however often it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from serve.errors import StaleWriter, ZImageError
from serve.jobs.accounting import Accounting
from serve.jobs.endings import Endings
from serve.jobs.job import Job
from serve.jobs.memory import Memory
from serve.jobs.pool import Pools
from serve.jobs.results import Results
from serve.jobs.store import JobStore
from serve.jobs.tasks import Tasks
from serve.messages import Submission


class Desk(Protocol):
    """Who works on jobs that were let in."""

    def begin(self, job: Job) -> None:
        """It is placed, or waits, and knows where it stands; nobody has been told of it."""

    async def abandon(self, job: Job, *, drop: bool) -> None:
        """It was not taken, and is forgotten; `drop` its pictures, too."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    pools: Pools
    store: JobStore
    jobs: Memory
    results: Results
    accounting: Accounting
    endings: Endings
    tasks: Tasks
    _arriving: dict[str, asyncio.Task[str]] = field(default_factory=dict)

    async def submit(self, submission: Submission) -> str:
        """Goes on when the caller leaves. Raises what `ImageService.submit` does."""
        job_id = submission.job_id
        if job_id not in self._arriving:
            if job_id in self.jobs:
                return job_id
            self._arriving[job_id] = self.tasks.spawn(self._accept(submission))
            self._arriving[job_id].add_done_callback(partial(self._arrived, submission))
        return await asyncio.shield(self._arriving[job_id])

    @property
    def ids(self) -> Set[str]:
        """Of jobs that are on their way."""
        return self._arriving.keys()

    async def known(self, job_id: str) -> None:
        """Returns when a job is not on its way any more: nobody hears of one that is not stored."""
        if job_id in self._arriving:
            await asyncio.wait({self._arriving[job_id]})

    def _arrived(self, submission: Submission, arriving: asyncio.Task[str]) -> None:
        del self._arriving[submission.job_id]
        if not arriving.cancelled() and isinstance(error := arriving.exception(), ZImageError):
            self.accounting.refused(error, submission.request.model, submission.batch)

    async def _accept(self, submission: Submission) -> str:
        pool = self.pools.of(submission.request.model)
        if submission.idempotency_key is not None and (earlier := await self.store.repeated(submission)):
            return earlier.id  # a repetition is answered even where a new job would be refused
        cache_key = self.results.cache_key(submission, pool.fleet.engine_of(submission.request))
        if answered := await self.results.answer(submission, cache_key):
            self.jobs.remember(answered)
            if answered.id == submission.job_id:
                self.accounting.answered(answered)
                self.endings.answered(answered)
            return answered.id
        key = self.results.key(submission, cache_key)
        joins = key is not None and pool.life.flights.leader(key) is not None
        pool.admission.check(submission, joins=joins)
        return await self._take_in(pool.life, Job(submission, cache_key=cache_key))

    async def _take_in(self, desk: Desk, job: Job) -> str:
        """Placed while it is being stored, and acknowledged when it is: what is acknowledged outlives this process."""
        record = job.record()
        desk.begin(job)
        try:
            stored = await self.store.add(record)
        except Exception as error:
            await desk.abandon(job, drop=not isinstance(error, StaleWriter))
            raise
        if stored.id != job.id:
            await desk.abandon(job, drop=True)
        elif stored.status.terminal:
            await desk.abandon(job, drop=False)
        else:
            self.accounting.accepted(job.submission)
        return stored.id
