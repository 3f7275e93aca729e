"""Who is let in: readiness, the bounds of the queue, and deadlines that can be met. Refusing costs no work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from serve.errors import DeadlineInfeasible, NotReady, QueueFull, TooLargeForMemory
from serve.jobs.estimate import seconds_until_done, solo_seconds
from serve.jobs.fleet import Fleet
from serve.jobs.flights import Flights
from serve.jobs.memory import Memory
from serve.jobs.queue import JobQueue
from serve.messages import Submission
from serve.settings import QueueSettings

LOOKED_AT = 32  # waiting jobs, so that refusing costs the same however long the queue
HOLDS_S = 0.25  # a refusal holds for so long, for others too,
HOLDS_PART = 0.1  # and for no more than this part of the work that waits, lest places stay empty


@dataclass(frozen=True, slots=True)
class Admission:
    """To the queue of one model. Jobs that wait for another one's pictures count as those that wait for a GPU."""

    model: str
    bounds: QueueSettings
    fleet: Fleet
    queue: JobQueue
    jobs: Memory
    flights: Flights
    clock: Callable[[], float] = time.monotonic

    def check(self, submission: Submission, *, joins: bool = False) -> None:
        """Raises NotReady, TooLargeForMemory, QueueFull or DeadlineInfeasible.

        A service that was ready once queues through recoveries. One that `joins` work under way is not asked whether
        its deadline could be met by a new one.
        """
        if not self.fleet.was_ready:
            phase, _ = self.fleet.starting()
            hint = "try again when /readyz answers 200"
            raise NotReady(f"{self.model} is starting: {phase}", hint=hint, retry_after=5)
        request = submission.request
        if (largest_px := self.fleet.largest_px(request)) is not None:
            raise TooLargeForMemory.of(request.width, request.height, largest_px)
        user = submission.user
        waiting = len(self.queue) + self.flights.waiting_of()
        mine = self.queue.waiting_of(user) + self.flights.waiting_of(user)
        if waiting >= self.bounds.max_depth:
            message = f"the queue is full: {waiting} of {self.bounds.max_depth} jobs are waiting"
            raise self._full(message, for_all=True)
        if mine >= self.bounds.max_depth_per_user:
            message = f"{mine} jobs of yours are waiting; {self.bounds.max_depth_per_user} may"
            raise self._full(message, for_all=False)
        if submission.deadline_ms is not None and not joins:
            self._check_feasible(submission, submission.deadline_ms)

    def _full(self, message: str, *, for_all: bool) -> QueueFull:
        """The next place is free when the least of the jobs that are next has been worked off."""
        replicas = max(1, self.fleet.ready("denoiser"))
        waiting = [self.jobs[job_id].seconds_left() / replicas for job_id in islice(self.queue, LOOKED_AT)]
        return QueueFull(
            message,
            hint="try again after Retry-After seconds",
            retry_after=max(1, math.ceil(min(waiting, default=1.0))),
            for_all=for_all,
            holds_s=min(HOLDS_S, HOLDS_PART * sum(waiting)),
        )

    def _check_feasible(self, submission: Submission, deadline_ms: int) -> None:
        own = solo_seconds(submission, self.fleet.times())
        ahead = [self.jobs[job_id].seconds_left() for job_id in self._ahead_of(submission, own)]
        earliest = seconds_until_done(ahead, own, *self.fleet.outlook(self.clock()))
        if earliest is not None and earliest > deadline_ms / 1e3:
            feasible = math.ceil(earliest * 1e3)
            raise DeadlineInfeasible(
                f"deadline_ms {deadline_ms} cannot be met: the earliest feasible is {feasible}",
                param="deadline_ms",
                hint="ask for more time, fewer steps or a smaller size",
                retry_after=max(1, math.ceil(earliest - own)),
            )

    def _ahead_of(self, submission: Submission, own: float) -> list[str]:
        running = [job.id for job in self.jobs.active(self.model) if job.end is None and job.id not in self.queue]
        images = submission.request.n
        return running + self.queue.ahead_of(
            submission.priority, submission.user, images=images, image_seconds=own / images
        )
