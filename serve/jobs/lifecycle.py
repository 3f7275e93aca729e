"""A job's way from the queue to its end: placed, drawn, tried again, finished, and told of when that is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import structlog

from serve.errors import DeadlineExceeded, ModelNotFound, ReplicaLost, ZImageError
from serve.jobs.accounting import Accounting
from serve.jobs.backlog import Backlog
from serve.jobs.fleet import Backend, Fleet
from serve.jobs.flights import Flights
from serve.jobs.job import Job
from serve.jobs.memory import Memory
from serve.jobs.placements import Placement, Placements
from serve.jobs.queue import JobQueue
from serve.jobs.record import JobRecord
from serve.jobs.results import Results
from serve.jobs.sharing import Sharing
from serve.jobs.store import JobStore
from serve.jobs.tasks import Tasks
from serve.jobs.waiting import WaitingRoom
from serve.logs import origin
from serve.messages import (
    Canceled,
    Canceling,
    ErrorInfo,
    Expired,
    Failed,
    Generated,
    JobStatus,
    StoredImage,
    Succeeded,
    Terminal,
    Timings,
)

log = structlog.get_logger()


class Lifecycle:
    """Of the jobs of one model. `told` hears of each job whose end is stored. `stopped`, nothing is placed any more."""

    def __init__(
        self,
        model: str,
        max_attempts: int,
        backend: Backend,
        *,
        store: JobStore,
        jobs: Memory,
        fleet: Fleet,
        queue: JobQueue,
        room: WaitingRoom,
        results: Results,
        accounting: Accounting,
        tasks: Tasks,
        told: Callable[[Job], None],
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._max_attempts = max_attempts
        self._store = store
        self._jobs = jobs
        self._fleet = fleet
        self._queue = queue
        self._room = room
        self._results = results
        self._accounting = accounting
        self._tasks = tasks
        self._told = told
        self._clock = clock
        self.flights = Flights(self.started)
        self.placements = Placements(backend, fleet, self, tasks.spawn)
        self.sharing = Sharing(results, self.flights, room, self.placements, self, tasks.spawn)
        self.backlog = Backlog(fleet, self._drawn, clock)
        self.stopped = False

    # --- into the queue

    def begin(self, job: Job) -> None:
        self._enter(job)
        self.fill()
        self._room.publish([job])

    async def abandon(self, job: Job, *, drop: bool) -> None:
        """It was not taken: others who joined it meanwhile have its work, all else is as if it had never come."""
        heir = self.sharing.hand_over(job)
        self.flights.leave(job)
        if job.end is None:
            job.close(Canceled)
        self._withdraw(job)
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
        await asyncio.gather(*self.placements.stop(job), return_exceptions=True)
        if drop and heir is None:  # an heir makes its pictures its own
            await self._results.drop_all(job.submission)

    def take_up(self, record: JobRecord, *, serves: bool = True) -> Job:
        """A job of an earlier Dispatcher; one that was being cancelled has stopped with it.

        It fails where nothing here `serves` its model any more.
        """
        job = Job.restored(record)
        if record.status is JobStatus.CANCELING:
            self._jobs[job.id] = job
            self.end(job, Canceled)
            return job
        if not serves:
            self._jobs[job.id] = job
            gone = ModelNotFound(f"model {job.model!r} is not served any more", hint="GET /v1/models lists what is")
            self.end(job, Failed, error=ErrorInfo.of(gone))
            return job
        if job.crashes >= self._max_attempts:
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
            self.sharing.enter(job)
        else:
            self.sharing.give(job, images, Timings())
        if job.hard_deadline:
            self._tasks.spawn(self._expire_at_deadline(job))

    # --- onto replicas

    def fill(self) -> None:
        """Gives every free slot the next image in queue order."""
        while not (self.stopped or self._room.paused) and (job_id := self._queue.head()) is not None:
            job = self._jobs[job_id]
            sole = 0 < job.crashes >= self._max_attempts - 1  # its last try
            if not self.placements.place(job, job.pending[0], partial(self._room.deadline_in, job), sole=sole):
                return
            job.pending.popleft()
            job.turn = self._queue.served(job_id)

    def stop(self) -> None:
        """Nothing is placed any more, and what is placed is given up."""
        self.stopped = True
        self.placements.stop()

    def started(self, job: Job, at: float) -> None:
        """Its first step was taken, at `at` (Unix seconds)."""
        if job.end is None and job.begin(at):
            self._store.note(job.record())
        if not job.pending and job.id in self._queue:
            self._room.leave(job)

    # --- how placements end

    async def placing(self, job: Job) -> None:
        await self._store.save(job.record())

    def generated(self, placement: Placement, answer: Generated) -> None:
        job, image, request = placement.job, placement.task.image, placement.job.submission.request
        self._accounting.generated(job, answer)
        self._accounting.tally(placement.task.replica_id, answer.tally)
        if not job.finished:
            self.backlog.generated(answer, 2 if request.guided else 1)
        self.started(job, answer.started_at)
        job.finished[image] = answer
        job.placed.discard(image)
        job.step(image, request.steps_taken)
        self.finish(job)

    def lost(self, placement: Placement) -> None:
        """The replica is lost, not the job: it goes back to its place, unless it has cost too many replicas.

        One that was stopped on purpose is no loss.
        """
        job, image, most = placement.job, placement.task.image, self._max_attempts
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
        self._accounting.retried(job.model)
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
        self.fill()

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
        elif self.sharing.adopt(job):
            self._results.keep(job, images, self._fleet.engine_of(job.submission.request))
            self.end(job, Succeeded, images=images, timings=job.timings(), cache=job.cache, errors=job.errors())

    def broken(self, job: Job, error: Exception) -> None:
        self.end(job, Failed, error=_info(error, **origin(job.submission)))

    # --- ends

    def cancel(self, job: Job) -> bool:
        """True where it goes on until its replicas have stopped, which it is told then."""
        shared = self.flights.follows(job) or self.flights.followers(job)
        if job.end is None and job.status is JobStatus.RUNNING and not shared:
            self.flights.leave(job)  # nobody joins what is being stopped
            job.emit(Canceling)
            self._tasks.spawn(self._finish_cancel(job))
            return True
        if job.end is None and job.status is not JobStatus.CANCELING:
            self.end(job, Canceled)
        return False

    def end(self, job: Job, kind: type[Terminal], **data: Any) -> None:
        """Decided here, once; what is still placed for the job is stopped. Told when it is stored."""
        if job.end is not None:
            return
        heir = self.sharing.hand_over(job) if kind in (Canceled, Expired) else None
        if heir is not None:
            self._store.note(heir.record())
        job.close(kind, **data)
        self._accounting.ended(job)
        followers = self.flights.leave(job)
        self._withdraw(job)
        stopping = self.placements.stop(job)
        job.settling = self._tasks.spawn(self._settle(job, stopping, passed_on=heir is not None))
        if isinstance(job.end, Succeeded):
            self.sharing.land(followers, job.end)
        else:
            self.sharing.discard(job)
            for follower in followers:
                self.end(follower, kind, **data)

    def _drawn(self) -> Iterable[Job]:
        """Others wait for the pictures of one of these."""
        return (job for job in self._jobs.active(self._model) if not self.flights.follows(job))

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
        self._told(job)
        self._jobs.ended(job)

    async def _drop_pictures(self, job: Job) -> None:
        try:
            await self._results.drop_all(job.submission)
        except Exception as error:  # the job ends all the same, and a sweep comes later
            log.error("pictures of a job without a result stay", job_id=job.id, exc_info=error)

    async def _finish_cancel(self, job: Job) -> None:
        """`canceled` is said when the replicas have really stopped."""
        self._withdraw(job)
        await asyncio.gather(*self.placements.stop(job), return_exceptions=True)
        self.end(job, Canceled)

    async def _expire_at_deadline(self, job: Job) -> None:
        await asyncio.sleep(max(0.0, job.deadline - self._clock()))
        if job.end is None:
            message = f"deadline_ms {job.submission.deadline_ms} passed while the job was {job.status}"
            self.end(job, Expired, error=ErrorInfo.of(DeadlineExceeded(message, param="deadline_ms")))


def _info(error: Exception, **context: str) -> ErrorInfo:
    """What its owner is told; what is no error of ours is only told to the log."""
    if isinstance(error, ZImageError):
        return ErrorInfo.of(error)
    log.error("a task failed", exc_info=error, **context)
    return ErrorInfo.of(ZImageError("the server failed on this request"))
