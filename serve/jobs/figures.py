"""The service in figures: for people, for Triton's clients and for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import reduce

from serve.assets.store import AssetStore
from serve.errors import Unavailable
from serve.jobs import gallery
from serve.jobs.accounting import Accounting
from serve.jobs.job import Job
from serve.jobs.memory import Memory
from serve.jobs.pool import Pools
from serve.jobs.results import Results
from serve.jobs.stats import Recent, stats_of
from serve.jobs.status import snapshot_of, status_of, whole
from serve.jobs.store import JobStore
from serve.messages import JobStatus, JobView, Series, ServiceStats, ServiceStatus
from serve.metrics.registry import Snapshot
from serve.metrics.statistics import ModelStatistics


class Figures:
    """`continued` says that the service was there before this Dispatcher: a further model does not take it away."""

    def __init__(
        self,
        *,
        store: JobStore,
        assets: AssetStore,
        pools: Pools,
        jobs: Memory,
        results: Results,
        accounting: Accounting,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._assets = assets
        self._pools = pools
        self._jobs = jobs
        self._results = results
        self._accounting = accounting
        self._clock = clock
        self._opened = clock()
        self._recent = Recent(clock)
        self.continued = False

    def ended(self, job: Job) -> None:
        self._recent.add(job)

    def status(self) -> ServiceStatus:
        now = self._clock()
        models = {
            pool.model: status_of(
                pool.fleet, self._jobs.active(pool.model), now - self._opened, now, paused=pool.room.paused
            )
            for pool in self._pools
        }
        return whole(models, started=self.continued or all(pool.fleet.was_ready for pool in self._pools))

    def stats(self) -> ServiceStats:
        fleets = [pool.fleet for pool in self._pools]
        return stats_of(self.status(), fleets, self._waiting(), self._recent)

    def active(self, limit: int) -> list[JobView]:
        """Jobs that have begun, then the others in serving order, model by model."""
        begun = [job for job in self._jobs.active() if not job.status.terminal and job.status is not JobStatus.QUEUED]
        return [job.view() for job in [*begun, *self._waiting()][:limit]]

    def statistics(self) -> dict[str, ModelStatistics]:
        return deepcopy(self._accounting.statistics())

    def snapshot(self) -> Snapshot:
        uptime_s = self._uptime_s()
        return reduce(
            Snapshot.beside,
            (
                snapshot_of(pool.fleet, self._jobs.active(pool.model), pool.model, uptime_s, pool.tail)
                for pool in self._pools
            ),
        )

    async def metrics(self) -> str:
        kept: dict[Series, float] = {("zimage_cache_entries", ()): len(self._results)}
        with suppress(Unavailable):  # what the store would say is missing then; that it is away is told by the rest
            kept |= await self._store.look(gallery.totals)
        return self._accounting.registry.render(kept | await self._assets.measure())

    def _waiting(self) -> list[Job]:
        return [job for pool in self._pools for job in pool.room.waiting()]

    def _uptime_s(self) -> float:
        return self._clock() - self._opened
