"""The one writer: takes jobs in, places their images on replicas in queue order, and tells everybody what happens."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import structlog

from serve.errors import DeadlineExceeded, NotFound, ReplicaLost, StaleWriter, ZImageError
from serve.jobs.admission import Admission
from serve.jobs.deadlines import SoftDeadlines
from serve.jobs.estimate import etas, seconds_until_done, solo_seconds
from serve.jobs.fleet import Backend, Fleet
from serve.jobs.job import Job, Listener
from serve.jobs.placements import Placement, Placements
from serve.jobs.queue import JobQueue
from serve.jobs.record import JobRecord
from serve.jobs.state import PAUSED
from serve.jobs.stats import Recent, stats_of
from serve.jobs.store import JobStore
from serve.messages import (
    Canceled,
    Canceling,
    ErrorInfo,
    Event,
    Expired,
    Failed,
    Generated,
    JobQuery,
    JobStatus,
    JobView,
    Phase,
    Preview,
    Queued,
    ReplicaState,
    ServiceStats,
    ServiceStatus,
    Submission,
    Succeeded,
    TaskPreview,
    TaskReport,
    Terminal,
)
from serve.settings import Settings

log = structlog.get_logger()
T = TypeVar("T")

POSITIONS_EVERY_S = 0.25
PRUNE_EVERY_S = 3600.0
KEEP_FINISHED_S = 600.0
KEEP_FINISHED = 10_000


class Dispatcher:
    """Plain Python on one event loop; implements ImageService. Open it before use, close it after."""

    def __init__(
        self, settings: Settings, backend: Backend, store: JobStore, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._fleet = Fleet(settings.timeouts.heartbeat_s)
        self._queue = JobQueue()
        self._jobs: dict[str, Job] = {}
        self._arriving: dict[str, str] = {}
        self._admission = Admission(settings.queue, self._fleet, self._queue, self._jobs, self._arriving)
        self._finished: dict[str, float] = {}
        self._placements = Placements(backend, self._fleet, self, self._spawn)
        self._soft_deadlines = SoftDeadlines()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened = clock()
        self._was_ready = False
        self._moved = False
        self._stopped = False
        self._paused = False
        self._recent = Recent(clock)

    async def open(self) -> None:
        """Claims the store, and takes up what the Dispatcher before has left."""
        await self._store.open()
        self._paused = (await self._store.recall()).get(PAUSED) == "yes"
        left = [self._take_up(record) for record in await self._store.unfinished()]
        await asyncio.gather(*(self._store.save(job.record()) for job in left))
        self._was_ready = bool(left)  # who left jobs behind was ready once
        self._publish_positions()
        self._spawn(self._housekeeping())
        self._spawn(self._prune())

    async def close(self) -> None:
        """Jobs that have not ended go on when the store is opened again."""
        self._stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.close()

    async def check(self) -> None:
        """Raises StaleWriter when another Dispatcher has taken over, or what else has ended the store's writer."""
        try:
            await self._store.check()
        except StaleWriter:
            self._stop()
            raise

    # --- ImageService

    async def submit(self, submission: Submission) -> str:
        if submission.job_id in self._jobs:
            return submission.job_id
        if submission.idempotency_key is not None and (earlier := await self._store.repeated(submission)):
            return earlier.id  # a repetition is answered even where a new job would be refused
        self._admission.check(submission, self._was_ready)
        self._arriving[submission.job_id] = submission.user
        return await asyncio.shield(self._spawn(self._take_in(submission)))

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
        if job.end is None and job.status is JobStatus.RUNNING:
            job.emit(Canceling)
            self._spawn(self._finish_cancel(job))
            await self._store.save(job.record())
            return
        if job.end is None and job.status is JobStatus.QUEUED:
            self._end(job, Canceled)
        if job.settling is not None:
            await asyncio.shield(job.settling)

    async def get(self, job_id: str) -> JobView:
        return (await self._find(job_id)).view()

    async def find(self, query: JobQuery) -> list[JobView]:
        records = await self._store.find(query)
        views = [(self._jobs.get(record.id) or Job.restored(record)).view() for record in records]
        return [view for view in views if not query.statuses or view.status in query.statuses]

    async def delete(self, job_id: str) -> JobView:
        await self.cancel(job_id)
        async for _ in self.watch(job_id):
            pass
        job = await self._find(job_id)
        await self._store.delete(job_id)
        self._jobs.pop(job_id, None)
        self._finished.pop(job_id, None)
        return job.view()

    async def status(self) -> ServiceStatus:
        denoisers, text_encoders = self._fleet.ready("denoiser"), self._fleet.ready("text_encoder")
        ready = denoisers > 0 and text_encoders > 0
        phase, fraction = ("paused" if self._paused else Phase.READY, 1.0) if ready else self._fleet.starting()
        active = [job for job in self._jobs.values() if not job.status.terminal]
        queued = sum(job.status is JobStatus.QUEUED for job in active)
        return ServiceStatus(
            ready=ready,
            phase=str(phase),
            fraction=fraction,
            queued=queued,
            running=len(active) - queued,
            denoisers=denoisers,
            text_encoders=text_encoders,
            eta_seconds=seconds_until_done((job.seconds_left() for job in active), 0.0, self._drawing()),
            uptime_s=self._clock() - self._opened,
            paused=self._paused,
        )

    async def stats(self) -> ServiceStats:
        waiting = [job for job in map(self._jobs.__getitem__, self._queue) if job.status is JobStatus.QUEUED]
        return stats_of(await self.status(), self._fleet, waiting, self._recent)

    async def active(self, limit: int) -> list[JobView]:
        begun = [job for job in self._jobs.values() if not job.status.terminal and job.status is not JobStatus.QUEUED]
        waiting = [job for job in map(self._jobs.__getitem__, self._queue) if job.status is JobStatus.QUEUED]
        return [job.view() for job in [*begun, *waiting][:limit]]

    async def hold(self, paused: bool) -> None:
        """Remembered before it takes effect. What is on a replica is finished."""
        await self._store.remember(PAUSED, "yes" if paused else "no")
        self._paused = paused
        log.warning("the queue is paused" if paused else "the queue goes on", waiting=len(self._queue))
        self._fill()
        self._publish_positions()

    async def listen(self, job_id: str, listener: Listener, after: int) -> Job:
        """Replays what was missed, then passes on what comes. Raises NotFound."""
        job = await self._find(job_id)
        job.listen(listener, after)
        return job

    # --- news from replicas

    def heartbeat(self, state: ReplicaState) -> None:
        if self._fleet.beat(state, self._clock()):
            log.info("replica ready", replica=state.replica_id, role=state.role, device=state.device)
            self._measure_restored()
            self._moved = True
        if self._fleet.ready("denoiser") and self._fleet.ready("text_encoder"):
            self._was_ready = True
            self._fill()

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

    # --- placing

    async def _take_in(self, submission: Submission) -> str:
        """Stored first, then queued: what is acknowledged outlives this process."""
        try:
            record = await self._store.add(JobRecord(submission=submission, created_at=time.time()))
        finally:
            self._arriving.pop(submission.job_id, None)
        if record.id == submission.job_id and record.id not in self._jobs and not record.status.terminal:
            job = Job(submission, record.created_at)
            self._enqueue(job)
            self._fill()
            self._publish_positions([job])
        return record.id

    def _take_up(self, record: JobRecord) -> Job:
        """A job of an earlier Dispatcher; one that was being cancelled has stopped with it."""
        job = Job.restored(record)
        self._enqueue(job)
        if record.status is JobStatus.CANCELING:
            self._end(job, Canceled)
        return job

    def _enqueue(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._measure(job)
        if job.hard_deadline:
            self._spawn(self._expire_at_deadline(job))

    def _measure(self, job: Job) -> None:
        """What it costs by the newest table, and its deadline: an explicit one counts from acceptance."""
        submission = job.submission
        solo = solo_seconds(submission, self._fleet.times())
        job.image_seconds = solo / submission.request.n
        if submission.deadline_ms is not None:
            seconds = submission.deadline_ms / 1e3 - (time.time() - job.created_at)
        else:
            seconds = self._soft_deadlines.accept(submission.priority, solo, 0.0)
        job.deadline = self._clock() + seconds
        self._wait(job)

    def _measure_restored(self) -> None:
        """Jobs of an earlier Dispatcher came before any replica said what they cost."""
        for job in [self._jobs[job_id] for job_id in self._queue]:
            if job.pending and not job.image_seconds:
                self._measure(job)

    def _wait(self, job: Job) -> None:
        """Puts it in its place in the queue, with the images that are still to be placed."""
        submission = job.submission
        job.arrival = self._queue.add(
            job.id,
            submission.priority,
            submission.user,
            job.arrival or None,
            images=len(job.pending),
            image_seconds=job.image_seconds,
            turn=job.turn,
        )

    def _fill(self) -> None:
        """Gives every free slot the next image in queue order."""
        while not (self._stopped or self._paused) and (job_id := self._queue.head()) is not None:
            job = self._jobs[job_id]
            if not self._placements.place(job, job.pending[0], partial(self._deadline_in, job)):
                return
            job.pending.popleft()
            job.turn = self._queue.served(job_id)

    def _deadline_in(self, job: Job) -> float:
        now = self._clock()
        if not job.hard_deadline:
            job.deadline = self._soft_deadlines.place(
                job.submission.priority,
                job.deadline,
                alone_s=job.image_seconds * job.submission.request.n,
                image_s=job.image_seconds,
                now=now,
                replicas=self._fleet.ready("denoiser"),
            )
        return job.deadline - now

    # --- how placements end

    def generated(self, placement: Placement, answer: Generated) -> None:
        job, image, request = placement.job, placement.task.image, placement.job.submission.request
        self._begin(job, answer.started_at)
        job.finished[image] = answer
        job.step(image, request.steps)
        if len(job.finished) == request.n and job.status is JobStatus.RUNNING:
            images = tuple(job.finished[image].image for image in sorted(job.finished))
            self._end(job, Succeeded, images=images, timings=job.timings())

    def lost(self, placement: Placement) -> None:
        """The replica is lost, not the job: it goes back to its place, unless it has cost too many replicas."""
        job, image, most = placement.job, placement.task.image, self._settings.queue.max_attempts
        if job.end is not None or job.status is JobStatus.CANCELING:
            return
        if placement.task.attempt == job.attempt:  # several images lost with one replica are one loss
            job.attempt += 1
            job.losses += 1
            job.embeddings = None
            self._store.note(job.record())
        if job.losses >= most:
            error = ReplicaLost(f"the job lost its replica {most} times and is given up")
            self._end(job, Failed, error=ErrorInfo.of(error))
            return
        log.warning("a replica was lost, the job is tried again", job_id=job.id, attempt=job.attempt)
        job.steps_done.pop(image, None)
        job.pending.appendleft(image)
        self._wait(job)

    def failed(self, placement: Placement, error: Exception) -> None:
        if not isinstance(error, ZImageError):
            log.error("a task failed", job_id=placement.job.id, task_id=placement.task.id, exc_info=error)
            error = ZImageError("the server failed on this request")
        kind = Expired if isinstance(error, DeadlineExceeded) else Failed
        self._end(placement.job, kind, error=ErrorInfo.of(error))

    def freed(self) -> None:
        self._fill()

    # --- ends

    def _end(self, job: Job, kind: type[Terminal], **data: Any) -> None:
        """Decided here, once; what is still placed for the job is stopped. Told when it is stored."""
        if job.end is not None:
            return
        job.close(kind, **data)
        self._withdraw(job)
        self._placements.stop(job)
        job.settling = self._spawn(self._settle(job))

    def _withdraw(self, job: Job) -> None:
        """Nothing more of it is placed."""
        job.pending.clear()
        job.embeddings = None
        self._queue.remove(job.id)
        self._moved = True

    async def _settle(self, job: Job) -> None:
        await self._store.save(job.record())
        job.publish_end()
        self._recent.add(job)
        self._finished[job.id] = self._clock()
        self._forget_old()

    async def _finish_cancel(self, job: Job) -> None:
        """`canceled` is said when the replicas have really stopped."""
        self._withdraw(job)
        await asyncio.gather(*self._placements.stop(job), return_exceptions=True)
        self._end(job, Canceled)

    async def _expire_at_deadline(self, job: Job) -> None:
        await asyncio.sleep(max(0.0, job.deadline - self._clock()))
        if job.end is None:
            message = f"deadline_ms {job.submission.deadline_ms} passed while the job was {job.status}"
            self._end(job, Expired, error=ErrorInfo.of(DeadlineExceeded(message, param="deadline_ms")))

    def _forget_old(self) -> None:
        now = self._clock()
        for job_id, ended in list(self._finished.items()):
            if len(self._finished) <= KEEP_FINISHED and now - ended <= KEEP_FINISHED_S:
                return
            del self._finished[job_id], self._jobs[job_id]

    async def _prune(self) -> None:
        while True:
            await self._store.prune(time.time() - self._settings.jobs_ttl_s)
            await asyncio.sleep(PRUNE_EVERY_S)

    # --- positions

    def _begin(self, job: Job, at: float) -> None:
        if job.end is None and job.begin(at):
            self._store.note(job.record())
        if not job.pending and job.id in self._queue:
            self._queue.remove(job.id)
            self._moved = True

    def _drawing(self) -> int:
        """Replicas that take work now: nobody knows when a paused queue goes on."""
        return 0 if self._paused else self._fleet.ready("denoiser")

    def _publish_positions(self, jobs: Iterable[Job] | None = None) -> None:
        """Tells queued jobs where they stand, where that has changed; `jobs` limits it to some of them."""
        waiting = [job for job in map(self._jobs.__getitem__, self._queue) if job.status is JobStatus.QUEUED]
        wanted = None if jobs is None else {job.id for job in jobs}
        begun = (job.work() for job in self._jobs.values() if job.status is JobStatus.RUNNING and job.end is None)
        times = etas(begun, (job.work() for job in waiting), self._drawing())
        for position, (job, eta) in enumerate(zip(waiting, times, strict=True), 1):
            known = (position, len(waiting), eta is not None)
            if (wanted is None or job.id in wanted) and job.position() != known:
                job.emit(Queued, position=position, length=len(waiting), eta_seconds=eta)

    async def _housekeeping(self) -> None:
        while not self._stopped:
            await asyncio.sleep(POSITIONS_EVERY_S)
            if self._moved:
                self._moved = False
                self._publish_positions()
            for replica_id in self._fleet.silent(self._clock()):
                log.warning("a replica is silent and is no longer given work", replica=replica_id)
                self._placements.lose(replica_id)

    async def _find(self, job_id: str) -> Job:
        """From memory, else from the store. Raises NotFound."""
        if job_id in self._jobs:
            return self._jobs[job_id]
        record = await self._store.get(job_id)
        if record is None:
            raise NotFound(f"no job {job_id!r}")
        if job_id not in self._jobs and not record.status.terminal:  # its commit was reported as failed
            self._take_up(record)
            self._fill()
        return self._jobs.get(job_id) or Job.restored(record)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of our own: in Ray Serve a call made in a request's context would be cancelled with that request."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, StaleWriter) and not self._stopped:
            log.error("another dispatcher has taken over, this one stops", reason=error.message)
            self._stop()
        elif not isinstance(error, ZImageError):
            log.error("a task of the dispatcher failed", exc_info=error)

    def _stop(self) -> None:
        """Nothing is placed any more, and what is placed is given up."""
        self._stopped = True
        self._placements.stop()
