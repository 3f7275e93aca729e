"""One job inside the Dispatcher: its state, its events, and what is left to do."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serve.messages import (
    Canceled,
    Canceling,
    Event,
    Expired,
    Failed,
    Generated,
    JobStatus,
    Progress,
    Queued,
    Started,
    Submission,
    Succeeded,
    Terminal,
    Timings,
)

Listener = Callable[[Event], None]

_STATUS_AFTER: dict[type[Event], JobStatus] = {
    Queued: JobStatus.QUEUED,
    Started: JobStatus.RUNNING,
    Canceling: JobStatus.CANCELING,
    Succeeded: JobStatus.SUCCEEDED,
    Failed: JobStatus.FAILED,
    Canceled: JobStatus.CANCELED,
    Expired: JobStatus.EXPIRED,
}
_REPLACED = (Queued, Progress)  # of these only the newest is kept for those who join later


@dataclass(slots=True)
class Job:
    """`deadline` is in seconds of the Dispatcher's clock, all other times are Unix seconds; `arrival` is its number."""

    submission: Submission
    deadline: float
    image_seconds: float
    arrival: int
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 1
    embeddings: object = None
    pending: deque[int] = field(default_factory=deque)
    steps_done: dict[int, int] = field(default_factory=dict)
    finished: dict[int, Generated] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    listeners: set[Listener] = field(default_factory=set)
    _seq: int = 0

    def __post_init__(self) -> None:
        self.pending.extend(range(self.submission.request.n))

    @property
    def id(self) -> str:
        return self.submission.job_id

    @property
    def hard_deadline(self) -> bool:
        return self.submission.deadline_ms is not None

    def emit(self, kind: type[Event], **data: Any) -> None:
        """Records an event, moves the status with it, and tells who listens. Nothing follows a terminal one."""
        if self.status.terminal:
            return
        self._seq += 1
        event = kind(job_id=self.id, seq=self._seq, at=time.time(), **data)
        self.status = _STATUS_AFTER.get(kind, self.status)
        if isinstance(event, _REPLACED):
            self.events = [old for old in self.events if not isinstance(old, kind)]
        self.events.append(event)
        for listener in list(self.listeners):
            listener(event)
        if isinstance(event, Terminal):
            self.listeners.clear()

    def listen(self, listener: Listener, after: int) -> None:
        """Replays what was missed, then passes on what comes."""
        for event in self.events:
            if event.seq > after:
                listener(event)
        if not self.status.terminal:
            self.listeners.add(listener)

    def seconds_left(self) -> float:
        """GPU-seconds of work that remain, images in flight counted by their steps."""
        request = self.submission.request
        steps_left = (request.n - len(self.finished)) * request.steps - sum(
            done for image, done in self.steps_done.items() if image not in self.finished
        )
        return self.image_seconds * steps_left / request.steps

    def begin(self, at: float) -> None:
        """Its first step was taken `at`; repeated news changes nothing."""
        self.started_at = at if self.started_at is None else min(at, self.started_at)
        if self.status is JobStatus.QUEUED:
            self.emit(Started)

    def step(self, image: int, step: int) -> None:
        """`step` steps of an image are done; repeated and old news changes nothing."""
        if step > self.steps_done.get(image, 0):
            self.steps_done[image] = step
            request = self.submission.request
            self.emit(Progress, step=sum(self.steps_done.values()), steps=request.steps * request.n)

    def timings(self) -> Timings:
        images = self.finished.values()
        started_at = min(image.started_at for image in images)
        return Timings(
            queue_ms=1e3 * max(0.0, started_at - self.created_at),
            encode_ms=1e3 * max(image.encode_s for image in images),
            denoise_ms=1e3 * sum(image.denoise_s for image in images),
            decode_ms=1e3 * sum(image.decode_s for image in images),
            total_ms=1e3 * (time.time() - self.created_at),
        )
