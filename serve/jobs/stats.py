"""Figures for people: what was measured lately, and None where nothing was."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from serve.jobs.fleet import Fleet
from serve.jobs.job import Job
from serve.messages import PRIORITIES, JobStatus, ReplicaView, ServiceStats, ServiceStatus

WINDOW_S = 300.0
MOST = 10_000


class Recent:
    """Jobs that have ended: counted since the start, timed over the last five minutes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._succeeded: deque[tuple[float, float, int]] = deque(maxlen=MOST)  # when, seconds from acceptance, images
        self.ended: Counter[str] = Counter()

    def add(self, job: Job) -> None:
        record = job.record()
        self.ended[str(record.status)] += 1
        if record.status is JobStatus.SUCCEEDED and record.completed_at is not None:
            self._succeeded.append(
                (self._clock(), max(0.0, record.completed_at - record.created_at), len(record.images))
            )

    def response_s(self) -> float | None:
        """Mean from acceptance to the stored end."""
        seconds = [seconds for _, seconds, _ in self._lately()]
        return sum(seconds) / len(seconds) if seconds else None

    def images_per_minute(self) -> float:
        span = min(WINDOW_S, max(self._clock() - self._began, 1.0))
        return 60.0 * sum(images for _, _, images in self._lately()) / span

    def _lately(self) -> Iterable[tuple[float, float, int]]:
        while self._succeeded and self._clock() - self._succeeded[0][0] > WINDOW_S:
            self._succeeded.popleft()
        return self._succeeded


def stats_of(status: ServiceStatus, fleets: Iterable[Fleet], waiting: Iterable[Job], recent: Recent) -> ServiceStats:
    depth = Counter(job.submission.priority for job in waiting)
    return ServiceStats(
        status=status,
        waiting={priority: depth[priority] for priority in PRIORITIES},
        replicas=tuple(
            ReplicaView(state=replica.state, placed=len(replica.placed))
            for fleet in fleets
            for replica in fleet.replicas()
        ),
        ended={name: recent.ended[name] for name in sorted(recent.ended)},
        response_s=recent.response_s(),
        images_per_minute=recent.images_per_minute(),
    )
