"""Jobs of one model that wait for a GPU: what each costs, by when it is due, where it stands, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from serve.jobs.deadlines import SoftDeadlines
from serve.jobs.estimate import etas, solo_seconds
from serve.jobs.fleet import Fleet
from serve.jobs.job import Job
from serve.jobs.memory import Memory
from serve.jobs.queue import JobQueue
from serve.messages import PRIORITIES, JobStatus, Queued

PAUSE_PER_POSITION_S, LONGEST_PAUSE_S = 0.25, 5.0


class WaitingRoom:
    """`moved` says that positions have changed since they were told last; `paused` that nothing is placed."""

    def __init__(
        self,
        queue: JobQueue,
        jobs: Memory,
        fleet: Fleet,
        clock: Callable[[], float] = time.monotonic,
        *,
        model: str | None = None,
    ) -> None:
        self._queue = queue
        self._jobs = jobs
        self._fleet = fleet
        self._clock = clock
        self._model = model
        self._soft_deadlines = SoftDeadlines()
        self.moved = False
        self.paused = False

    def enter(self, job: Job) -> None:
        """With all of its images."""
        job.image_seconds = self._solo_s(job) / job.submission.request.n
        self.set_due(job)
        self.wait(job)

    def arrive(self, job: Job) -> None:
        """It waits for another one, and keeps its number for the case that it must wait here."""
        job.arrival = job.arrival or self._queue.arrive()

    def set_due(self, job: Job) -> None:
        """By the newest table. An explicit deadline counts from acceptance."""
        submission = job.submission
        if submission.deadline_ms is not None:
            seconds = submission.deadline_ms / 1e3 - (time.time() - job.created_at)
        else:
            seconds = self._soft_deadlines.accept(submission.priority, self._solo_s(job), 0.0)
        job.deadline = self._clock() + seconds

    def wait(self, job: Job) -> None:
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

    def leave(self, job: Job) -> None:
        self._queue.remove(job.id)
        self.moved = True

    def hand_over(self, job: Job, heir: Job) -> None:
        """The heir waits in its own place for what is left of the work of `job`."""
        if job.id in self._queue:
            submission = heir.submission
            self._queue.hand_over(job.id, heir.id, submission.priority, submission.user, heir.arrival)
            self.moved = True

    def measure_restored(self) -> None:
        """Jobs of an earlier Dispatcher came before any replica said what they cost."""
        for job in [self._jobs[job_id] for job_id in self._queue]:
            if job.pending and not job.image_seconds:
                self.enter(job)

    def overtakes(self, job: Job, other: Job) -> bool:
        """Whether a new job would be drawn before one that is here, or faster, if it waited by itself."""
        mine, theirs = job.submission, other.submission
        if PRIORITIES.index(mine.priority) < PRIORITIES.index(theirs.priority):
            return True
        if mine.user == theirs.user or other.id not in self._queue:
            return False
        images = mine.request.n
        ahead = self._queue.ahead_of(mine.priority, mine.user, images=images, image_seconds=self._solo_s(job) / images)
        return other.id not in ahead

    def deadline_in(self, job: Job) -> float:
        """Seconds from now by which an image that is placed now should be done."""
        now, deadline = self._clock(), job.deadline
        if not job.hard_deadline:
            priority = self._queue.highest() or job.submission.priority
            deadline = self._soft_deadlines.place(
                priority,
                deadline,
                alone_s=job.image_seconds * job.submission.request.n,
                image_s=job.image_seconds,
                now=now,
                replicas=self._fleet.ready("denoiser"),
                owed=priority != job.submission.priority,
            )
        return deadline - now

    def publish(self, jobs: Iterable[Job] | None = None) -> None:
        """Tells queued jobs where they stand, where that has changed; `jobs` limits it to some of them.

        Nobody knows when a paused queue goes on.

        Of all, the farther back the less often, every five seconds at least: a thousand that wait are not told of each
        one that overtakes them and is gone again.
        """
        waiting, now = self.waiting(), self._clock()
        self._fleet.sleepers.call(now, work=bool(waiting))
        drawing, starts_in = (0, 0.0) if self.paused else self._fleet.outlook(now)
        wanted = None if jobs is None else {job.id for job in jobs}
        begun = (
            job.work() for job in self._jobs.active(self._model) if job.status is JobStatus.RUNNING and job.end is None
        )
        times = etas(begun, (job.work() for job in waiting), drawing, starts_in)
        for position, (job, eta) in enumerate(zip(waiting, times, strict=True), 1):
            known = (position, len(waiting), eta is not None)
            before = job.position()
            if (wanted is not None and job.id not in wanted) or before == known:
                continue
            pause = 0.0 if wanted is not None else min(LONGEST_PAUSE_S, PAUSE_PER_POSITION_S * position)
            since_s = abs(time.time() - job.told_at())  # the clock may have been put back
            if before is None or before[2] != known[2] or since_s >= pause:
                job.emit(Queued, position=position, length=len(waiting), eta_seconds=eta)
            else:
                self.moved = True

    def waiting(self) -> list[Job]:
        """In serving order."""
        return [job for job in map(self._jobs.__getitem__, self._queue) if job.status is JobStatus.QUEUED]

    def _solo_s(self, job: Job) -> float:
        return solo_seconds(job.submission, self._fleet.times())
