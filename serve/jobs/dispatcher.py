"""The one writer: takes jobs in, places their images on replicas in queue order, and tells everybody what happens."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import structlog

from serve.errors import DeadlineExceeded, NotFound, ReplicaLost, ZImageError
from serve.jobs.admission import Admission
from serve.jobs.estimate import seconds_until_done, solo_seconds
from serve.jobs.fleet import Backend, Fleet, ReplicaGone
from serve.jobs.job import Job, Listener
from serve.jobs.queue import JobQueue
from serve.messages import (
    Canceled,
    Canceling,
    ErrorInfo,
    Event,
    Expired,
    Failed,
    Generated,
    JobStatus,
    Phase,
    Preview,
    Priority,
    Queued,
    ReplicaState,
    ServiceStatus,
    Submission,
    Succeeded,
    Task,
    TaskPreview,
    TaskReport,
    Terminal,
)
from serve.settings import Settings

log = structlog.get_logger()

SOFT_DEADLINE: dict[Priority, float] = {"interactive": 3, "standard": 10, "batch": 60}  # × time alone on a GPU
UNKNOWN_SOLO_S = 10.0  # before anything was measured
POSITIONS_EVERY_S = 0.25
KEEP_FINISHED_S = 600.0
KEEP_FINISHED = 10_000


@dataclass(slots=True)
class _Placement:
    job: Job
    image: int
    attempt: int
    replica_id: str
    drive: asyncio.Task[None] | None = None
    lost: bool = False


class Dispatcher:
    """Plain Python on one event loop; implements ImageService. Open it before use, close it after."""

    def __init__(self, settings: Settings, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._backend = backend
        self._clock = clock
        self._fleet = Fleet(settings.timeouts.heartbeat_s)
        self._queue = JobQueue()
        self._jobs: dict[str, Job] = {}
        self._admission = Admission(settings.queue, self._fleet, self._queue, self._jobs)
        self._finished: dict[str, float] = {}
        self._placements: dict[str, _Placement] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened = clock()
        self._was_ready = False
        self._moved = False

    def open(self) -> None:
        self._spawn(self._housekeeping())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- ImageService

    async def submit(self, submission: Submission) -> None:
        if submission.job_id in self._jobs:
            return
        self._admission.check(submission, self._was_ready)
        job = self._accept(submission)
        if submission.deadline_ms is not None:
            self._spawn(self._expire_at_deadline(job))
        self._fill()
        self._publish_positions([job])

    async def watch(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        events: asyncio.Queue[Event] = asyncio.Queue()
        self.listen(job_id, events.put_nowait, after)
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Terminal):
                    return
        finally:
            self.unlisten(job_id, events.put_nowait)

    async def cancel(self, job_id: str) -> None:
        job = self._job(job_id)
        if job.status is JobStatus.QUEUED:
            self._end(job, Canceled)
        elif job.status is JobStatus.RUNNING:
            job.emit(Canceling)
            self._spawn(self._finish_cancel(job))

    async def status(self) -> ServiceStatus:
        denoisers, text_encoders = self._fleet.ready("denoiser"), self._fleet.ready("text_encoder")
        ready = denoisers > 0 and text_encoders > 0
        phase, fraction = (Phase.READY, 1.0) if ready else self._fleet.starting()
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
            eta_seconds=seconds_until_done((job.seconds_left() for job in active), 0.0, denoisers),
            uptime_s=self._clock() - self._opened,
        )

    def listen(self, job_id: str, listener: Listener, after: int) -> None:
        self._job(job_id).listen(listener, after)

    def unlisten(self, job_id: str, listener: Listener) -> None:
        if job_id in self._jobs:
            self._jobs[job_id].listeners.discard(listener)

    # --- news from replicas

    def heartbeat(self, state: ReplicaState) -> None:
        if self._fleet.beat(state, self._clock()):
            log.info("replica ready", replica=state.replica_id, role=state.role, device=state.device)
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
                job.emit(Preview, image=placement.image, index=report.index, key=report.key)
            else:
                self._begin(job, report.at)
                job.step(placement.image, report.step)

    # --- placing

    def _accept(self, submission: Submission) -> Job:
        now = self._clock()
        solo = solo_seconds(submission, self._fleet.times())
        if submission.deadline_ms is not None:
            deadline = now + submission.deadline_ms / 1e3
        else:
            deadline = now + SOFT_DEADLINE[submission.priority] * (solo or UNKNOWN_SOLO_S)
        arrival = self._queue.add(submission.job_id, submission.priority, submission.user)
        job = self._jobs[submission.job_id] = Job(submission, deadline, solo / submission.request.n, arrival)
        return job

    def _fill(self) -> None:
        """Gives every free slot the next image in queue order."""
        for job_id in list(self._queue):
            job = self._jobs[job_id]
            while job.pending:
                if not self._place(job, job.pending[0]):
                    return
                job.pending.popleft()

    def _place(self, job: Job, image: int) -> bool:
        task_id = f"{job.id}-{image}.{job.attempt}"
        replica_id = self._fleet.place(task_id, alone=job.attempt > 1)
        if replica_id is None:
            return False
        if job.embeddings is None:
            job.embeddings = contextvars.Context().run(self._backend.encode, job.submission.request)
        task = Task(
            id=task_id,
            job_id=job.id,
            image=image,
            asset_id=f"{job.id}-{image}",
            request=job.submission.request,
            prompt_tokens=job.submission.prompt_tokens,
            previews=job.submission.previews,
            deadline_in=job.deadline - self._clock(),
            hard_deadline=job.hard_deadline,
            attempt=job.attempt,
            replica_id=replica_id,
        )
        placement = _Placement(job, image, job.attempt, replica_id)
        self._placements[task_id] = placement
        placement.drive = self._spawn(self._drive(task, placement, job.embeddings))
        return True

    async def _drive(self, task: Task, placement: _Placement, embeddings: object) -> None:
        """One image from its replica's slot to its end."""
        job = placement.job
        try:
            generated = await self._backend.generate(task, embeddings)
        except asyncio.CancelledError:
            if not placement.lost:
                raise
            self._retry(placement, None)
        except ReplicaGone as gone:
            self._retry(placement, gone.replica_id)
        except DeadlineExceeded as error:
            self._end(job, Expired, error=ErrorInfo.of(error))
        except ZImageError as error:
            self._end(job, Failed, error=ErrorInfo.of(error))
        except Exception:
            log.exception("a task failed", job_id=job.id, task_id=task.id)
            self._end(job, Failed, error=ErrorInfo.of(ZImageError("the server failed on this request")))
        else:
            self._finish_image(placement, generated)
        finally:
            self._placements.pop(task.id, None)
            self._fleet.release(task.replica_id, task.id)
            self._fill()

    def _finish_image(self, placement: _Placement, generated: Generated) -> None:
        job, steps = placement.job, placement.job.submission.request.steps
        self._begin(job, generated.started_at)
        job.finished[placement.image] = generated
        job.step(placement.image, steps)
        if len(job.finished) == job.submission.request.n and job.status is JobStatus.RUNNING:
            images = tuple(job.finished[image].image for image in sorted(job.finished))
            self._end(job, Succeeded, images=images, timings=job.timings())

    def _retry(self, placement: _Placement, gone: str | None) -> None:
        """The replica is lost, not the job: it goes back to its place, unless it has cost too many replicas."""
        job = placement.job
        if gone is not None:
            self._lose(gone)
        if job.status.terminal or job.status is JobStatus.CANCELING:
            return
        if placement.attempt == job.attempt:  # several images lost with one replica are one loss
            job.attempt += 1
            job.embeddings = None
        if job.attempt > self._settings.queue.max_attempts:
            message = f"the job lost its replica {self._settings.queue.max_attempts} times and is given up"
            self._end(job, Failed, error=ErrorInfo.of(ReplicaLost(message)))
            return
        log.warning("a replica was lost, the job is tried again", job_id=job.id, attempt=job.attempt)
        job.steps_done.pop(placement.image, None)
        job.pending.appendleft(placement.image)
        self._queue.add(job.id, job.submission.priority, job.submission.user, job.arrival)

    def _lose(self, replica_id: str) -> None:
        for task_id in self._fleet.drop(replica_id):
            placement = self._placements.get(task_id)
            if placement is not None and placement.drive is not asyncio.current_task():
                placement.lost = True
                assert placement.drive is not None
                placement.drive.cancel()

    # --- ends

    def _end(self, job: Job, kind: type[Terminal], **data: Any) -> None:
        """A terminal event, once; what is still placed for the job is stopped."""
        job.emit(kind, **data)
        job.pending.clear()
        job.embeddings = None
        self._queue.remove(job.id)
        self._moved = True
        for drive in self._drives(job):
            drive.cancel()
        self._finished[job.id] = self._clock()
        self._forget_old()

    def _drives(self, job: Job) -> list[asyncio.Task[None]]:
        mine = (placement.drive for placement in self._placements.values() if placement.job is job)
        return [drive for drive in mine if drive is not None and drive is not asyncio.current_task()]

    async def _finish_cancel(self, job: Job) -> None:
        """`canceled` is said when the replicas have really stopped."""
        job.pending.clear()
        drives = self._drives(job)
        for drive in drives:
            drive.cancel()
        await asyncio.gather(*drives, return_exceptions=True)
        self._end(job, Canceled)

    async def _expire_at_deadline(self, job: Job) -> None:
        await asyncio.sleep(max(0.0, job.deadline - self._clock()))
        if not job.status.terminal:
            message = f"deadline_ms {job.submission.deadline_ms} passed while the job was {job.status}"
            self._end(job, Expired, error=ErrorInfo.of(DeadlineExceeded(message, param="deadline_ms")))

    def _forget_old(self) -> None:
        now = self._clock()
        for job_id, ended in list(self._finished.items()):
            if len(self._finished) <= KEEP_FINISHED and now - ended <= KEEP_FINISHED_S:
                return
            del self._finished[job_id], self._jobs[job_id]

    # --- positions

    def _begin(self, job: Job, at: float) -> None:
        job.begin(at)
        if not job.pending and job.id in self._queue:
            self._queue.remove(job.id)
            self._moved = True

    def _publish_positions(self, jobs: Iterable[Job] | None = None) -> None:
        """Tells queued jobs where they stand, where that has changed; `jobs` limits it to some of them."""
        waiting = [job for job in map(self._jobs.__getitem__, self._queue) if job.status is JobStatus.QUEUED]
        wanted = None if jobs is None else {job.id for job in jobs}
        replicas = self._fleet.ready("denoiser")
        ahead = sum(job.seconds_left() for job in self._jobs.values() if job.status is JobStatus.RUNNING)
        for position, job in enumerate(waiting, 1):
            eta = seconds_until_done([ahead], job.seconds_left(), replicas)
            ahead += job.seconds_left()
            if (wanted is None or job.id in wanted) and _position_of(job) != (position, len(waiting)):
                job.emit(Queued, position=position, length=len(waiting), eta_seconds=eta)

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(POSITIONS_EVERY_S)
            if self._moved:
                self._moved = False
                self._publish_positions()
            for replica_id in self._fleet.silent(self._clock()):
                log.warning("a replica is silent and is no longer given work", replica=replica_id)
                self._lose(replica_id)

    def _job(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise NotFound(f"no job {job_id!r}")
        return self._jobs[job_id]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of our own: in Ray Serve a call made in a request's context would be cancelled with that request."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _position_of(job: Job) -> tuple[int, int] | None:
    last = next((event for event in reversed(job.events) if isinstance(event, Queued)), None)
    return (last.position, last.length) if last else None
