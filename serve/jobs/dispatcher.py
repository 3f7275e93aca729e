"""The one writer: takes jobs in, places their images on replicas in queue order, and tells everybody what happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import structlog

from serve.access.keys import ApiKey
from serve.assets.store import AssetStore
from serve.errors import DeadlineExceeded, NotFound, ReplicaLost, StaleWriter, ZImageError
from serve.jobs import gallery
from serve.jobs.accounting import Accounting
from serve.jobs.admission import Admission
from serve.jobs.arrivals import Arrivals
from serve.jobs.backlog import Backlog, Demand
from serve.jobs.endings import Endings
from serve.jobs.estimate import solo_seconds
from serve.jobs.fleet import Backend, Fleet
from serve.jobs.flights import Flights
from serve.jobs.job import Job, Listener
from serve.jobs.keeper import Keeper
from serve.jobs.keys import check_way_in
from serve.jobs.memory import Memory
from serve.jobs.placements import Placement, Placements
from serve.jobs.queue import JobQueue
from serve.jobs.record import JobRecord
from serve.jobs.results import Results
from serve.jobs.served import SERVED, note_of, take_up
from serve.jobs.sharing import Sharing
from serve.jobs.state import PAUSED
from serve.jobs.stats import Recent, stats_of
from serve.jobs.status import snapshot_of, status_of
from serve.jobs.store import JobStore
from serve.jobs.tasks import Tasks
from serve.jobs.waiting import WaitingRoom
from serve.logs import origin
from serve.messages import (
    AssetQuery,
    AssetView,
    Canceled,
    Canceling,
    Deletion,
    ErrorInfo,
    Event,
    Expired,
    Failed,
    Generated,
    JobQuery,
    JobStatus,
    JobView,
    Preview,
    ReplicaState,
    ServiceStats,
    ServiceStatus,
    StoredImage,
    Submission,
    Succeeded,
    Tally,
    TaskPreview,
    TaskReport,
    Terminal,
    Timings,
)
from serve.metrics.registry import Snapshot
from serve.metrics.statistics import Statistics
from serve.quota import Usage
from serve.settings import Settings

log = structlog.get_logger()
T = TypeVar("T")

POSITIONS_EVERY_S = 0.25
PRUNE_EVERY_S = 3600.0
FILES_S = 5.0


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
        self._assets = assets
        self._keeper = Keeper(store, assets, settings.assets.retention, self._busy, self._forget_pictures)
        self._clock = clock
        self.accounting = Accounting(settings.served_model_name, self._snapshot, self._solo_s)
        self._endings = Endings(settings)
        self._fleet = Fleet(settings.timeouts.heartbeat_s, self.accounting.lost)
        self._queue = JobQueue()
        self._jobs = Memory(clock)
        self._room = WaitingRoom(self._queue, self._jobs, self._fleet, clock)
        self._results = Results(settings.cache, store, assets)
        self._flights = Flights(self._begin)
        self._tasks = Tasks(self._superseded)
        self._placements = Placements(backend, self._fleet, self, self._tasks.spawn)
        self._sharing = Sharing(self._results, self._flights, self._room, self._placements, self, self._tasks.spawn)
        self._arrivals = Arrivals(
            desk=self,
            store=store,
            jobs=self._jobs,
            results=self._results,
            flights=self._flights,
            fleet=self._fleet,
            admission=Admission(settings.queue, self._fleet, self._queue, self._jobs, self._flights, clock),
            accounting=self.accounting,
            endings=self._endings,
            tasks=self._tasks,
        )
        self._opened = clock()
        self.was_ready = False
        self._stopped = False
        self._recent = Recent(clock)
        self._backlog = Backlog(self._fleet, self._drawn, clock)
        self._session = self._served = ""

    async def open(self, session: str = "") -> None:
        """Claims the store, and takes up what the Dispatcher before has left; `session` names the Ray it runs on."""
        await self._store.open()
        await self._results.load()
        known = await self._store.recall()
        self._room.paused = known.get(PAUSED) == "yes"
        self._session, self._served = session, known.get(SERVED, "")
        left = [self._take_up(record) for record in await self._store.unfinished()]
        await asyncio.gather(*(self._store.save(job.record()) for job in left))
        served = take_up(self._fleet, self._served, session)
        self.was_ready = bool(left) or served  # who left jobs behind was ready once
        self._room.publish()
        self._tasks.spawn(self._housekeeping())
        self._tasks.spawn(self._prune())
        self._tasks.spawn(self._keeper.run())

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
        await asyncio.gather(*(self._store.save(job.record()) for job in placed))

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
        shared = self._flights.follows(job) or self._flights.followers(job)
        if job.end is None and job.status is JobStatus.RUNNING and not shared:
            self._flights.leave(job)  # nobody joins what is being stopped
            job.emit(Canceling)
            self._tasks.spawn(self._finish_cancel(job))
            await self._store.save(job.record())
            return
        if job.end is None and job.status is not JobStatus.CANCELING:
            self.end(job, Canceled)
        if job.settling is not None:
            await asyncio.shield(job.settling)

    async def get(self, job_id: str) -> JobView:
        job = await self._find(job_id)
        if job.status is JobStatus.QUEUED:
            self._room.publish([job])
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
        await self._soon(self._drop_files(view))
        return view

    async def find_assets(self, query: AssetQuery) -> list[AssetView]:
        return await self._store.look(partial(gallery.find, query=query))

    async def delete_assets(self, user: str | None, ids: tuple[str, ...]) -> Deletion:
        return await self._with_files(await self._keeper.delete(list(ids), user))

    async def delete_all_assets(self, user: str, confirm: int | None) -> Deletion:
        return await self._with_files(await self._keeper.delete_all(user, confirm))

    async def status(self) -> ServiceStatus:
        now = self._clock()
        return status_of(self._fleet, self._jobs.active(), now - self._opened, now, paused=self._room.paused)

    async def usage(self, user: str) -> Usage:
        return await self._store.usage(user, time.time())

    async def api_keys(self) -> list[ApiKey]:
        return await self._store.keys.all()

    async def add_api_key(self, key: ApiKey) -> None:
        await self._store.keys.add(key)

    async def revoke_api_key(self, key_id: str) -> ApiKey:
        return await self._store.keys.revoke(key_id, time.time())

    async def stats(self) -> ServiceStats:
        return stats_of(await self.status(), self._fleet, self._room.waiting(), self._recent)

    async def active(self, limit: int) -> list[JobView]:
        begun = [job for job in self._jobs.active() if not job.status.terminal and job.status is not JobStatus.QUEUED]
        return [job.view() for job in [*begun, *self._room.waiting()][:limit]]

    async def hold(self, paused: bool) -> None:
        """Remembered before it takes effect. What is on a replica is finished."""
        await self._store.remember(PAUSED, "yes" if paused else "no")
        self._room.paused = paused
        log.warning("the queue is paused" if paused else "the queue goes on", waiting=len(self._queue))
        self._fill()
        self._room.publish()

    async def statistics(self) -> Statistics:
        return deepcopy(self.accounting.statistics)

    async def metrics(self) -> str:
        kept = await self._store.look(gallery.totals)
        kept["zimage_cache_entries", ()] = len(self._results)
        return self.accounting.registry.render(kept | await self._assets.measure())

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
        if self._fleet.beat(state, self._clock()):
            log.info("replica ready", replica=state.replica_id, role=state.role, device=state.device)
            self._room.measure_restored()
            self._room.moved = True
        if self._fleet.ready("denoiser") and self._fleet.ready("text_encoder"):
            self.was_ready = True
            self._fill()
            self._note_served()

    def leave(self, replica_id: str) -> None:
        """A replica is stopped on purpose, and has nothing left to do: what it still holds goes elsewhere."""
        self._fleet.leave(replica_id)
        self._placements.lose(replica_id)
        self._note_served()

    def _drawn(self) -> Iterable[Job]:
        """Others wait for the pictures of one of these."""
        return (job for job in self._jobs.active() if not self._flights.follows(job))

    def demand(self) -> dict[str, Demand]:
        """Work that waits, and who is busy, by role, since it was asked for last."""
        return self._backlog.measure()

    def counted(self, sender: str, tally: Tally | None) -> None:
        """What another process of the service has counted."""
        self.accounting.tally(sender, tally)

    def report(self, reports: Iterable[TaskReport]) -> None:
        for report in reports:
            placement = self._placements.get(report.task_id)
            if placement is None:
                continue  # cancelled, or placed elsewhere meanwhile
            job = placement.job
            if isinstance(report, TaskPreview):
                job.emit(Preview, image=placement.task.image, index=report.index, key=report.key)
            else:
                self._begin(job, report.at)
                job.step(placement.task.image, report.step)

    # --- arrivals

    def begin(self, job: Job) -> None:
        self._enter(job)
        self._fill()
        self._room.publish([job])

    async def abandon(self, job: Job, *, drop: bool) -> None:
        """It was not taken: others who joined it meanwhile have its work, all else is as if it had never come."""
        heir = self._sharing.hand_over(job)
        self._flights.leave(job)
        if job.end is None:
            job.close(Canceled)
        self._withdraw(job)
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
        await asyncio.gather(*self._placements.stop(job), return_exceptions=True)
        if drop and heir is None:  # an heir makes its pictures its own
            await self._results.drop_all(job.submission)

    def _take_up(self, record: JobRecord) -> Job:
        """A job of an earlier Dispatcher; one that was being cancelled has stopped with it."""
        job = Job.restored(record)
        if record.status is JobStatus.CANCELING:
            self._jobs[job.id] = job
            self.end(job, Canceled)
            return job
        if job.crashes >= self._settings.queue.max_attempts:
            self._jobs[job.id] = job
            error = ReplicaLost(f"the service died {job.crashes} times while it drew this job, which is given up")
            self.end(job, Failed, error=ErrorInfo.of(error))
            return job
        images = self._results.find(job.submission, job.cache_key)
        self._enter(job, images)  # the one that it had joined has ended
        return job

    def _enter(self, job: Job, images: tuple[StoredImage, ...] | None = None) -> None:
        """With the pictures of an identical one, if they are there."""
        self._jobs[job.id] = job
        self._room.set_due(job)
        if images is None:
            self._sharing.enter(job)
        else:
            self._sharing.give(job, images, Timings())
        if job.hard_deadline:
            self._tasks.spawn(self._expire_at_deadline(job))

    # --- placing

    def _fill(self) -> None:
        """Gives every free slot the next image in queue order."""
        while not (self._stopped or self._room.paused) and (job_id := self._queue.head()) is not None:
            job = self._jobs[job_id]
            sole = 0 < job.crashes >= self._settings.queue.max_attempts - 1  # its last try
            if not self._placements.place(job, job.pending[0], partial(self._room.deadline_in, job), sole=sole):
                return
            job.pending.popleft()
            job.turn = self._queue.served(job_id)

    # --- how placements end

    async def placing(self, job: Job) -> None:
        await self._store.save(job.record())

    def generated(self, placement: Placement, answer: Generated) -> None:
        job, image, request = placement.job, placement.task.image, placement.job.submission.request
        self.accounting.generated(job, answer)
        self.accounting.tally(placement.task.replica_id, answer.tally)
        if not job.finished:
            self._backlog.generated(answer, 2 if request.guided else 1)
        self._begin(job, answer.started_at)
        job.finished[image] = answer
        job.placed.discard(image)
        job.step(image, request.steps)
        self.finish(job)

    def lost(self, placement: Placement) -> None:
        """The replica is lost, not the job: it goes back to its place, unless it has cost too many replicas.

        One that was stopped on purpose is no loss.
        """
        job, image, most = placement.job, placement.task.image, self._settings.queue.max_attempts
        if not job.wanted:
            return
        job.placed.discard(image)
        if placement.attempt == job.attempt:  # several images lost with one replica are one loss
            job.attempt += 1
            job.losses += not placement.planned
            job.embeddings = None
            self._store.note(job.record())
        if job.losses >= most:
            error = ReplicaLost(f"the job lost its replica {most} times and is given up")
            self.end(job, Failed, error=ErrorInfo.of(error))
            return
        what = "stopped" if placement.planned else "lost"
        log.warning(f"a replica was {what}, the job is tried again", **origin(job.submission), attempt=job.attempt)
        self.accounting.retried()
        self.again(job, image)

    def failed(self, placement: Placement, error: Exception) -> None:
        """One image fails only itself; a deadline ends the job that has it."""
        job, task = placement.job, placement.task
        info = _info(error, **origin(job.submission), task_id=task.id)
        if not isinstance(error, DeadlineExceeded):
            job.fail(task.image, info)
            self.finish(job)
            return
        if task.job_id == job.id:
            self.end(job, Expired, error=info)
        heir = placement.job  # whoever has the work now: the deadline was not its own
        if task.job_id != heir.id:
            self.again(heir, task.image)

    def freed(self) -> None:
        self._fill()

    def again(self, job: Job, image: int) -> None:
        """Back to its place, to be drawn once more, if it is still wanted."""
        if not job.wanted:
            return
        job.finished.pop(image, None)
        job.steps_done.pop(image, None)
        job.pending.appendleft(image)
        self._room.wait(job)

    def finish(self, job: Job) -> None:
        """Ends it when nothing is left to draw."""
        if job.images_left or not job.wanted:
            return
        images = tuple(job.finished[image].image for image in sorted(job.finished))
        if not images:
            self.end(job, Failed, error=job.failures[min(job.failures)])
        elif self._sharing.adopt(job):
            self._results.keep(job, images, self._fleet.engine)
            self.end(job, Succeeded, images=images, timings=job.timings(), cache=job.cache, errors=job.errors())

    # --- ends

    def end(self, job: Job, kind: type[Terminal], **data: Any) -> None:
        """Decided here, once; what is still placed for the job is stopped. Told when it is stored."""
        if job.end is not None:
            return
        heir = self._sharing.hand_over(job) if kind in (Canceled, Expired) else None
        if heir is not None:
            self._store.note(heir.record())
        job.close(kind, **data)
        self.accounting.ended(job)
        followers = self._flights.leave(job)
        self._withdraw(job)
        stopping = self._placements.stop(job)
        job.settling = self._tasks.spawn(self._settle(job, stopping, passed_on=heir is not None))
        if isinstance(job.end, Succeeded):
            self._sharing.land(followers, job.end)
        else:
            self._sharing.discard(job)
            for follower in followers:
                self.end(follower, kind, **data)

    def _withdraw(self, job: Job) -> None:
        """Nothing more of it is placed."""
        job.pending.clear()
        job.embeddings = None
        self._room.leave(job)

    async def _settle(self, job: Job, stopping: list[asyncio.Task[None]], *, passed_on: bool) -> None:
        """Pictures of a job without a result go before its end is stored, unless its work was `passed_on`."""
        if not isinstance(job.end, Succeeded) and not passed_on and (stopping or job.started_at or job.inherited):
            await asyncio.gather(*stopping, return_exceptions=True)
            await self._drop_pictures(job)
        await self._store.save(job.record())
        job.publish_end()
        self._endings.ended(job)
        self._recent.add(job)
        self._jobs.ended(job)

    async def _drop_pictures(self, job: Job) -> None:
        try:
            await self._results.drop_all(job.submission)
        except Exception as error:  # the job ends all the same, and a sweep comes later
            log.error("pictures of a job without a result stay", job_id=job.id, exc_info=error)

    async def _finish_cancel(self, job: Job) -> None:
        """`canceled` is said when the replicas have really stopped."""
        self._withdraw(job)
        await asyncio.gather(*self._placements.stop(job), return_exceptions=True)
        self.end(job, Canceled)

    async def _expire_at_deadline(self, job: Job) -> None:
        await asyncio.sleep(max(0.0, job.deadline - self._clock()))
        if job.end is None:
            message = f"deadline_ms {job.submission.deadline_ms} passed while the job was {job.status}"
            self.end(job, Expired, error=ErrorInfo.of(DeadlineExceeded(message, param="deadline_ms")))

    async def _prune(self) -> None:
        while True:
            await self._store.prune(time.time() - self._settings.jobs_ttl_s)
            await asyncio.sleep(PRUNE_EVERY_S)

    # --- pictures

    async def _with_files(self, deletion: Deletion) -> Deletion:
        if deletion.deleted:
            await self._soon(self._keeper.sweep())
        return deletion

    async def _drop_files(self, view: JobView) -> None:
        """Of a job that was stopped half-way, too, whose pictures have no rows."""
        await self._assets.delete(*(f"{view.id}-{image}" for image in range(view.request.n)))
        await self._assets.delete_previews(view.id)

    async def _soon(self, removal: Coroutine[Any, Any, None]) -> None:
        """Waits for files to be gone; very many, or those of a slow store, go on without the caller."""
        await asyncio.wait({self._tasks.spawn(removal)}, timeout=FILES_S)

    def _busy(self) -> set[str]:
        return {job.id for job in self._jobs.active() if not job.status.terminal} | self._arrivals.ids

    def _forget_pictures(self, asset_ids: Iterable[str]) -> None:
        gone = set(asset_ids)
        for job_id in {asset_id.rpartition("-")[0] for asset_id in gone} & self._jobs.keys():
            self._jobs[job_id].forget_pictures(gone)

    # --- the rest

    def _begin(self, job: Job, at: float) -> None:
        if job.end is None and job.begin(at):
            self._store.note(job.record())
        if not job.pending and job.id in self._queue:
            self._room.leave(job)

    async def _housekeeping(self) -> None:
        while not self._stopped:
            await asyncio.sleep(POSITIONS_EVERY_S)
            if self._room.moved:
                self._room.moved = False
                self._room.publish()
            for replica_id in self._fleet.silent(self._clock()):
                log.warning("a replica is silent and is no longer given work", replica=replica_id)
                self._placements.lose(replica_id)

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
            self._fill()
        return self._jobs.get(job_id) or Job.restored(record)

    def _solo_s(self, submission: Submission) -> float:
        return solo_seconds(submission, self._fleet.times())

    def _snapshot(self) -> Snapshot:
        model, uptime_s = self._settings.served_model_name, self._clock() - self._opened
        return snapshot_of(self._fleet, self._jobs.active(), model, uptime_s)

    def broken(self, job: Job, error: Exception) -> None:
        self.end(job, Failed, error=_info(error, **origin(job.submission)))

    def _note_served(self) -> None:
        """Stored where it has changed."""
        if self._session and not self._stopped and (note := note_of(self._fleet, self._session)) != self._served:
            self._served = note
            self._tasks.spawn(self._store.remember(SERVED, note))

    def _superseded(self, error: StaleWriter) -> None:
        if not self._stopped:
            log.error("another dispatcher has taken over, this one stops", reason=error.message)
            self._stop()

    def _stop(self) -> None:
        """Nothing is placed any more, and what is placed is given up."""
        self._stopped = True
        self._placements.stop()


def _info(error: Exception, **context: str) -> ErrorInfo:
    """What its owner is told; what is no error of ours is only told to the log."""
    if isinstance(error, ZImageError):
        return ErrorInfo.of(error)
    log.error("a task failed", exc_info=error, **context)
    return ErrorInfo.of(ZImageError("the server failed on this request"))
