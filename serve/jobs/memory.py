"""The jobs that the Dispatcher has in memory: all that have not ended, and for a while those that have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from serve.jobs.job import Job
from serve.jobs.record import JobRecord
from serve.jobs.store import JobStore
from serve.messages import JobQuery, JobView

KEEP_FINISHED_S = 600.0
KEEP_FINISHED = 10_000


class Memory(dict[str, Job]):
    """By id."""

    def __init__(self, clock: Callable[[], float], home: Callable[[str], str] = lambda model: model) -> None:
        """`home` says which of the models that are served draws what was asked of another name."""
        super().__init__()
        self._clock = clock
        self._home = home
        self._ended: dict[str, float] = {}
        self._active: dict[str, dict[str, Job]] = {}

    def __setitem__(self, job_id: str, job: Job) -> None:
        super().__setitem__(job_id, job)
        if not job.status.terminal:
            self._active.setdefault(self._home(job.model), {})[job_id] = job

    def __delitem__(self, job_id: str) -> None:
        self._rest(self[job_id])
        super().__delitem__(job_id)

    def active(self, model: str | None = None) -> list[Job]:
        """Those that have not ended, of one model or of all, without a look at the thousands that have."""
        if model is not None:
            return list(self._active.get(model, {}).values())
        return [job for jobs in self._active.values() for job in jobs.values()]

    def ended(self, job: Job) -> None:
        """It is kept for those who come late, but not for long."""
        now = self._ended[job.id] = self._clock()
        self._rest(job)
        while self._ended:
            job_id, ended = next(iter(self._ended.items()))
            if len(self._ended) <= KEEP_FINISHED and now - ended <= KEEP_FINISHED_S:
                return
            self.forget(job_id)

    def remember(self, record: JobRecord) -> None:
        """One that has ended elsewhere, or as it came."""
        if record.status.terminal and record.id not in self:
            job = self[record.id] = Job.restored(record)
            self.ended(job)

    def forget(self, job_id: str) -> None:
        self._ended.pop(job_id, None)
        if (job := self.pop(job_id, None)) is not None:
            self._rest(job)

    def _rest(self, job: Job) -> None:
        self._active.get(self._home(job.model), {}).pop(job.id, None)

    async def find(self, store: JobStore, query: JobQuery) -> list[JobView]:
        """What is stored may be older than what is known here, so that a page is filled in several goes."""
        views: list[JobView] = []
        while True:
            left = query.limit - len(views)
            records = await store.find(replace(query, limit=left))
            for record in records:
                view = (self.get(record.id) or Job.restored(record)).view()
                if not query.statuses or view.status in query.statuses:
                    views.append(view)
            if len(records) < left or len(views) == query.limit:
                return views
            query = replace(query, before=records[-1].id)
