"""The service in figures: for people, for Triton's clients and for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy

from serve.assets.store import AssetStore
from serve.errors import Unavailable
from serve.jobs import gallery
from serve.jobs.accounting import Accounting
from serve.jobs.fleet import Fleet
from serve.jobs.job import Job
from serve.jobs.memory import Memory
from serve.jobs.results import Results
from serve.jobs.stats import Recent, stats_of
from serve.jobs.status import snapshot_of, status_of
from serve.jobs.store import JobStore
from serve.jobs.waiting import WaitingRoom
from serve.messages import JobStatus, JobView, Series, ServiceStats, ServiceStatus
from serve.metrics.registry import Snapshot
from serve.metrics.statistics import Statistics


class Figures:
    def __init__(
        self,
        *,
        store: JobStore,
        assets: AssetStore,
        fleet: Fleet,
        jobs: Memory,
        room: WaitingRoom,
        results: Results,
        accounting: Accounting,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._assets = assets
        self._fleet = fleet
        self._jobs = jobs
        self._room = room
        self._results = results
        self._accounting = accounting
        self._clock = clock
        self._opened = clock()
        self._recent = Recent(clock)

    def ended(self, job: Job) -> None:
        self._recent.add(job)

    def status(self) -> ServiceStatus:
        now = self._clock()
        return status_of(self._fleet, self._jobs.active(), now - self._opened, now, paused=self._room.paused)

    def stats(self) -> ServiceStats:
        return stats_of(self.status(), self._fleet, self._room.waiting(), self._recent)

    def active(self, limit: int) -> list[JobView]:
        """Jobs that have begun, then the others in serving order."""
        begun = [job for job in self._jobs.active() if not job.status.terminal and job.status is not JobStatus.QUEUED]
        return [job.view() for job in [*begun, *self._room.waiting()][:limit]]

    def statistics(self) -> Statistics:
        return deepcopy(self._accounting.statistics)

    def snapshot(self) -> Snapshot:
        return snapshot_of(self._fleet, self._jobs.active(), self._accounting.model, self._uptime_s())

    async def metrics(self) -> str:
        kept: dict[Series, float] = {("zimage_cache_entries", ()): len(self._results)}
        with suppress(Unavailable):  # what the store would say is missing then; that it is away is told by the rest
            kept |= await self._store.look(gallery.totals)
        return self._accounting.registry.render(kept | await self._assets.measure())

    def _uptime_s(self) -> float:
        return self._clock() - self._opened
