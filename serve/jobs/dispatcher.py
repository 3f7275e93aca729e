"""The one writer of the service: its parts wired, and what callers ask of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace

import structlog

from serve.access.keys import ApiKey
from serve.assets.store import AssetStore
from serve.errors import NotFound, StaleWriter
from serve.jobs.accounting import Accounting
from serve.jobs.album import Album
from serve.jobs.arrivals import Arrivals
from serve.jobs.backlog import Demand
from serve.jobs.endings import Endings
from serve.jobs.figures import Figures
from serve.jobs.fleet import Backend
from serve.jobs.job import Job, Listener
from serve.jobs.memory import Memory
from serve.jobs.pool import Pool, Pools, Shared
from serve.jobs.record import JobRecord
from serve.jobs.results import Results
from serve.jobs.state import PAUSED
from serve.jobs.store import JobStore
from serve.jobs.tasks import Tasks
from serve.jobs.way_in import check_way_in
from serve.messages import (
    AssetQuery,
    AssetView,
    Deletion,
    Event,
    JobQuery,
    JobStatus,
    JobView,
    Preview,
    ReplicaState,
    ServiceStats,
    ServiceStatus,
    Submission,
    Tally,
    TaskPreview,
    TaskReport,
    Terminal,
)
from serve.metrics.registry import Snapshot
from serve.metrics.statistics import ModelStatistics, Statistics
from serve.quota import Usage
from serve.settings import Settings

log = structlog.get_logger()

POSITIONS_EVERY_S = 0.25
PRUNE_EVERY_S = 3600.0


class Dispatcher:
    """Plain Python on one event loop; implements ImageService. Open it before use, close it after."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        store: JobStore,
        assets: AssetStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._tasks = Tasks(self._superseded)
        self._endings = Endings(settings)
        self.accounting = Accounting(
            [Statistics(model, settings.tail(model)) for model in settings.served],
            snapshot=self._snapshot,
            solo=self._solo_s,
        )
        self._jobs = Memory(clock, home=lambda model: self._pools.home(model).model)
        self._results = Results(settings.cache, store, assets)
        shared = Shared(
            backend=backend,
            store=store,
            jobs=self._jobs,
            results=self._results,
            accounting=self.accounting,
            tasks=self._tasks,
            told=self._told,
            clock=clock,
        )
        self._pools = Pools(settings, lambda own, tail: Pool.of(own, tail, shared))
        self._arrivals = Arrivals(
            pools=self._pools,
            store=store,
            jobs=self._jobs,
            results=self._results,
            accounting=self.accounting,
            endings=self._endings,
            tasks=self._tasks,
        )
        self._album = Album(
            settings.assets.retention,
            store=store,
            assets=assets,
            jobs=self._jobs,
            arrivals=self._arrivals,
            tasks=self._tasks,
        )
        self._figures = Figures(
            store=store,
            assets=assets,
            pools=self._pools,
            jobs=self._jobs,
            results=self._results,
            accounting=self.accounting,
            clock=clock,
        )

    async def open(self, session: str = "") -> None:
        """Claims the store, and takes up what the Dispatcher before has left; `session` names the Ray it runs on."""
        await self._store.open()
        await self._results.load()
        known = await self._store.recall()
        for pool in self._pools:
            pool.room.paused = known.get(PAUSED) == "yes"
        left = [self._take_up(record) for record in await self._store.unfinished()]
        await asyncio.gather(*(self._store.save(job.record()) for job in left))
        for pool in self._pools:
            served = pool.served.take_up(known, session)
            behind = any(self._pools.home(job.model) is pool for job in left)
            pool.fleet.was_ready = served or behind  # who left jobs behind was ready once
            self._figures.continued |= served
            pool.room.publish()
        self._tasks.spawn(self._housekeeping())
        self._tasks.spawn(self._prune())
        self._tasks.spawn(self._album.keeper.run())

    async def close(self) -> None:
        """Jobs that have not ended go on when the store is opened again."""
        await asyncio.gather(self.hand_back(), return_exceptions=True)  # a stale writer has nothing to hand back
        await self._tasks.close()
        await self._store.close()
        await self._endings.close()

    async def hand_back(self) -> None:
        """Nothing runs any more, and no job is blamed for this end: what has not ended is the next Dispatcher's."""
        self._stop()
        placed = [job for job in self._jobs.active() if job.placed and job.end is None]
        for job in placed:
            job.placed.clear()
        over = (pool.served.hand_over() for pool in self._pools)
        await asyncio.gather(*(self._store.save(job.record()) for job in placed), *over)

    async def check(self) -> None:
        """Raises StaleWriter when another Dispatcher has taken over, or what else has ended the store's writer."""
        try:
            await self._store.check()
        except StaleWriter:
            self._stop()
            raise

    async def check_way_in(self, host: str) -> None:
        """Raises ConfigError for a service that is to be reached at `host`, and that nobody could enter."""
        await check_way_in(self._settings, host, self._store.keys)

    # --- ImageService

    async def submit(self, submission: Submission) -> str:
        return await self._arrivals.submit(submission)

    async def watch(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        events: asyncio.Queue[Event] = asyncio.Queue()
        job = await self.listen(job_id, events.put_nowait, after)
        try:
            while not (job.status.terminal and events.empty()):
                event = await events.get()
                yield event
                if isinstance(event, Terminal):
                    return
        finally:
            job.listeners.discard(events.put_nowait)

    async def cancel(self, job_id: str) -> None:
        job = await self._find(job_id)
        if self._pools.home(job.model).life.cancel(job):
            await self._store.save(job.record())
        elif job.settling is not None:
            await asyncio.shield(job.settling)

    async def get(self, job_id: str) -> JobView:
        job = await self._find(job_id)
        if job.status is JobStatus.QUEUED:
            self._pools.home(job.model).room.publish([job])
        (view,) = await self._store.deliveries.shown([job.view()])
        return view

    async def find(self, query: JobQuery) -> list[JobView]:
        return await self._store.deliveries.shown(await self._jobs.find(self._store, query))

    async def delete(self, job_id: str) -> JobView:
        await self.cancel(job_id)
        async for _ in self.watch(job_id):
            pass
        job = await self._find(job_id)
        await self._store.delete(job_id)
        self._jobs.forget(job_id)
        view = job.view()
        await self._album.drop(view)
        return view

    async def find_assets(self, query: AssetQuery) -> list[AssetView]:
        return await self._album.find(query)

    async def delete_assets(self, user: str | None, ids: tuple[str, ...]) -> Deletion:
        return await self._album.delete(user, ids)

    async def delete_all_assets(self, user: str, confirm: int | None) -> Deletion:
        return await self._album.delete_all(user, confirm)

    async def status(self) -> ServiceStatus:
        return self._figures.status()

    async def usage(self, user: str) -> Usage:
        return await self._store.usage(user, time.time())

    async def api_keys(self) -> list[ApiKey]:
        return await self._store.keys.all()

    async def add_api_key(self, key: ApiKey) -> None:
        await self._store.keys.add(key)

    async def revoke_api_key(self, key_id: str) -> ApiKey:
        return await self._store.keys.revoke(key_id, time.time())

    async def stats(self) -> ServiceStats:
        return self._figures.stats()

    async def active(self, limit: int) -> list[JobView]:
        return self._figures.active(limit)

    async def hold(self, paused: bool) -> None:
        """Remembered before it takes effect. What is on a replica is finished."""
        await self._store.remember(PAUSED, "yes" if paused else "no")
        waiting = sum(len(pool.queue) for pool in self._pools)
        log.warning("the queue is paused" if paused else "the queue goes on", waiting=waiting)
        for pool in self._pools:
            pool.room.paused = paused
            pool.life.fill()
            pool.room.publish()

    async def statistics(self) -> dict[str, ModelStatistics]:
        return self._figures.statistics()

    async def metrics(self) -> str:
        return await self._figures.metrics()

    async def listen(self, job_id: str, listener: Listener, after: int) -> Job:
        """Replays what was missed, then passes on what comes. Raises NotFound."""
        job = await self._find(job_id)
        job.listen(listener, after)
        return job

    async def told(self, job_id: str) -> list[Event]:
        """Everything, of a job that has ended; nothing of any other. Raises NotFound."""
        job = await self._find(job_id)
        return list(job.events) if job.status.terminal else []

    def unlisten(self, job_id: str, listener: Listener) -> None:
        if (job := self._jobs.get(job_id)) is not None:
            job.listeners.discard(listener)

    # --- news from replicas

    def heartbeat(self, state: ReplicaState) -> None:
        """A replica of a model that is not served any more is being stopped, and is not heard."""
        pool = self._pools.find(state.model) if state.model else self._pools.first
        if pool is None:
            return
        state = replace(state, model=pool.model)
        if pool.fleet.beat(state, self._clock()):
            log.info("replica ready", replica=state.replica_id, model=pool.model, role=state.role, device=state.device)
            pool.room.measure_restored()
            pool.room.moved = True
        if pool.fleet.whole:
            pool.life.fill()
            pool.served.note()

    def leave(self, replica_id: str) -> None:
        """A replica is stopped on purpose, and has nothing left to do: what it still holds goes elsewhere."""
        for pool in self._pools:
            pool.fleet.leave(replica_id)
            pool.lose(replica_id, planned=True)
            if not pool.life.stopped:
                pool.served.note()

    def withdraw(self, replica_id: str) -> None:
        """It is about to be stopped: it gets nothing more, and its next heartbeat says so, too."""
        for pool in self._pools:
            pool.fleet.withdraw(replica_id)

    def give_up(self, replica_id: str) -> None:
        """It is dead for everybody else, whatever it still says: what it holds is drawn elsewhere."""
        for pool in self._pools:
            if pool.fleet.withdraw(replica_id):
                log.warning("a replica was given up", replica=replica_id)
            pool.fleet.leave(replica_id)
            pool.lose(replica_id)

    def demand(self) -> dict[str, Demand]:
        """Work that waits, and who is busy, by role and model, since it was asked for last."""
        return {role: demand for pool in self._pools for role, demand in pool.demand().items()}

    def counted(self, sender: str, tally: Tally | None) -> None:
        """What another process of the service has counted."""
        self.accounting.tally(sender, tally)

    def report(self, reports: Iterable[TaskReport]) -> None:
        for report in reports:
            found = ((pool, pool.life.placements.get(report.task_id)) for pool in self._pools)
            pool, placement = next(((pool, it) for pool, it in found if it is not None), (self._pools.first, None))
            if placement is None:
                continue  # cancelled, or placed elsewhere meanwhile
            job = placement.job
            if isinstance(report, TaskPreview):
                job.emit(Preview, image=placement.task.image, index=report.index, key=report.key)
            else:
                pool.life.started(job, report.at)
                job.step(placement.task.image, report.step)

    async def _prune(self) -> None:
        while True:
            await self._store.prune(time.time() - self._settings.jobs_ttl_s)
            await asyncio.sleep(PRUNE_EVERY_S)

    # --- the rest

    async def _housekeeping(self) -> None:
        while not self._pools.first.life.stopped:
            await asyncio.sleep(POSITIONS_EVERY_S)
            for pool in self._pools:
                if pool.room.moved:
                    pool.room.moved = False
                    pool.room.publish()
                for replica_id in pool.fleet.silent(self._clock()):
                    log.warning("a replica is silent and is no longer given work", replica=replica_id)
                    pool.lose(replica_id)

    def _take_up(self, record: JobRecord) -> Job:
        model = record.submission.request.model
        return self._pools.home(model).life.take_up(record, serves=self._pools.find(model) is not None)

    def _stop(self) -> None:
        for pool in self._pools:
            pool.life.stop()

    async def _find(self, job_id: str) -> Job:
        """From memory, else from the store. Raises NotFound."""
        await self._arrivals.known(job_id)
        if job_id in self._jobs:
            return self._jobs[job_id]
        record = await self._store.get(job_id)
        if record is None:
            raise NotFound(f"no job {job_id!r}")
        if job_id not in self._jobs and not record.status.terminal:  # its commit was reported as failed
            self._take_up(record)
            self._pools.home(record.submission.request.model).life.fill()
        return self._jobs.get(job_id) or Job.restored(record)

    def _superseded(self, error: StaleWriter) -> None:
        if not self._pools.first.life.stopped:
            log.error("another dispatcher has taken over, this one stops", reason=error.message)
            self._stop()

    def _solo_s(self, submission: Submission) -> float:
        return self._pools.solo_seconds(submission)

    def _snapshot(self) -> Snapshot:
        return self._figures.snapshot()

    def _told(self, job: Job) -> None:
        self._endings.ended(job)
        self._figures.ended(job)
