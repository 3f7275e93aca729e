"""One job inside the Dispatcher: its state, its events, and what is left to do."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from serve.jobs.estimate import Work
from serve.jobs.record import JobRecord
from serve.messages import (
    CacheUse,
    Canceled,
    Canceling,
    Delivery,
    ErrorInfo,
    Event,
    Expired,
    Failed,
    Generated,
    ImageError,
    JobStatus,
    JobView,
    Progress,
    Queued,
    Started,
    Submission,
    Succeeded,
    Terminal,
    Timings,
)

E = TypeVar("E", bound=Event)
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
_END_WITH: dict[JobStatus, tuple[type[Terminal], tuple[str, ...]]] = {
    JobStatus.SUCCEEDED: (Succeeded, ("images", "timings", "cache", "errors")),
    JobStatus.FAILED: (Failed, ("error",)),
    JobStatus.CANCELED: (Canceled, ()),
    JobStatus.EXPIRED: (Expired, ("error",)),
}
EVENTS_OF_A_LIFE = 1_000_000_000  # more than any job has between two starts of the Dispatcher
_REPLACED = (Queued, Progress)  # of these only the newest is kept for those who join later


@dataclass(slots=True)
class Job:
    """`deadline` is in seconds of the Dispatcher's clock, all other times are Unix seconds.

    `arrival` and `turn` are its numbers in the queue. `placed` are its images on replicas; `inherited` says that an
    earlier Dispatcher has left it behind. `end` is decided, and stored, before it is published.
    Jobs of one `cache_key` may share their work: one of them leads, and only it has images to draw.
    """

    submission: Submission
    created_at: float = field(default_factory=time.time)
    deadline: float = 0.0
    image_seconds: float = 0.0
    arrival: int = 0
    turn: int | None = None
    started_at: float | None = None
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 1
    losses: int = 0
    cache: CacheUse = "miss"
    cache_key: str | None = None
    crashes: int = 0
    inherited: bool = False
    embeddings: object = None
    pending: deque[int] = field(default_factory=deque)
    placed: set[int] = field(default_factory=set)
    steps_done: dict[int, int] = field(default_factory=dict)
    finished: dict[int, Generated] = field(default_factory=dict)
    failures: dict[int, ErrorInfo] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    listeners: set[Listener] = field(default_factory=set)
    seq: int = 0
    end: Terminal | None = None
    settling: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.pending.extend(range(self.submission.request.n))

    @classmethod
    def restored(cls, record: JobRecord) -> Job:
        """One that has ended tells its end; all others begin anew, with event numbers above those they have used."""
        job = cls(record.submission, record.created_at, attempt=record.attempt, losses=record.losses, seq=record.seq)
        job.cache, job.cache_key = record.cache, record.cache_key
        if record.status.terminal:
            job.started_at, job.status, job.end = record.started_at, record.status, _end_of(record)
            job.events.append(job.end)
            return job
        job.seq += EVENTS_OF_A_LIFE
        job.crashes, job.inherited = record.crashes, True
        if record.status is JobStatus.RUNNING:
            job.attempt += 1
        return job

    @property
    def id(self) -> str:
        return self.submission.job_id

    @property
    def model(self) -> str:
        return self.submission.request.model

    @property
    def hard_deadline(self) -> bool:
        return self.submission.deadline_ms is not None

    def record(self) -> JobRecord:
        """As it is to be stored, its end included before that is published."""
        status = self.status if self.end is None else _STATUS_AFTER[type(self.end)]
        return JobRecord(
            submission=self.submission,
            created_at=self.created_at,
            status=status,
            seq=self.seq,
            attempt=self.attempt,
            losses=self.losses,
            crashes=self.crashes + bool(self.placed and self.end is None),
            started_at=self.started_at,
            completed_at=self.end.at if self.end else None,
            images=self.end.images if isinstance(self.end, Succeeded) else (),
            timings=self.end.timings if isinstance(self.end, Succeeded) else None,
            cache=self.cache,
            cache_key=self.cache_key,
            errors=self.end.errors if isinstance(self.end, Succeeded) else (),
            error=self.end.error if isinstance(self.end, Failed | Expired) else None,
        )

    def view(self) -> JobView:
        """As its owner may see it: what is not published yet has not happened."""
        request, ended = self.submission.request, self.status.terminal
        stored = self.record()
        queued = self._newest(Queued) if self.status is JobStatus.QUEUED else None
        progress = self._newest(Progress)
        steps = request.steps_taken * request.n
        done = steps if self.status is JobStatus.SUCCEEDED else 0
        return JobView(
            id=self.id,
            user=self.submission.user,
            status=self.status,
            seq=self.events[-1].seq if self.events else self.seq,
            request=request,
            priority=self.submission.priority,
            deadline_ms=self.submission.deadline_ms,
            attempt=self.attempt,
            created_at=self.created_at,
            started_at=self.started_at,
            completed_at=stored.completed_at if ended else None,
            step=progress.step if progress else done,
            steps=steps,
            position=queued.position if queued else None,
            length=queued.length if queued else None,
            eta_seconds=queued.eta_seconds if queued else None,
            images=stored.images if ended else (),
            timings=stored.timings if ended else None,
            cache=self.cache,
            errors=stored.errors if ended else (),
            error=stored.error if ended else None,
            parent_id=self.submission.parent_id,
            webhook=Delivery(job_id=self.id, url=url) if (url := self.submission.webhook_url) is not None else None,
            preset=self.submission.preset,
        )

    def emit(self, kind: type[Event], **data: Any) -> None:
        """Records an event, moves the status with it, and tells who listens; nothing when the end is decided."""
        if self.end is None:
            self._publish(self._event(kind, data))

    def close(self, kind: type[Terminal], **data: Any) -> None:
        """Decides how it ends."""
        end = self._event(kind, data)
        assert isinstance(end, Terminal)
        self.end = end

    def publish_end(self) -> None:
        if self.end is not None and not self.status.terminal:
            self._publish(self.end)
            self.listeners.clear()

    def forget_pictures(self, asset_ids: Container[str]) -> None:
        """Pictures of a succeeded job have been deleted: whoever asks from now on is told so."""
        if isinstance(self.end, Succeeded):
            images = tuple(replace(i, deleted=True) if i.asset_id in asset_ids else i for i in self.end.images)
            before, self.end = self.end, replace(self.end, images=images)
            self.events = [self.end if event is before else event for event in self.events]

    def listen(self, listener: Listener, after: int) -> None:
        """Replays what was missed, then passes on what comes."""
        for event in self.events:
            if event.seq > after:
                listener(event)
        if not self.status.terminal:
            self.listeners.add(listener)

    def position(self) -> tuple[int, int, bool] | None:
        """What it was told last: where it stands, of how many, and whether the time was known."""
        queued = self._newest(Queued)
        return (queued.position, queued.length, queued.eta_seconds is not None) if queued else None

    def told_at(self) -> float:
        """When it was told that, in Unix time."""
        queued = self._newest(Queued)
        return queued.at if queued else 0.0

    @property
    def images_left(self) -> int:
        return self.submission.request.n - len(self.finished) - len(self.failures)

    @property
    def wanted(self) -> bool:
        """Neither ended nor being stopped."""
        return self.end is None and self.status is not JobStatus.CANCELING

    @property
    def untouched(self) -> bool:
        """Nothing of it was ever placed."""
        return self.status is JobStatus.QUEUED and len(self.pending) == self.submission.request.n and not self.losses

    def seconds_left(self) -> float:
        """GPU-seconds of work that remain, images in flight counted by their steps."""
        request = self.submission.request
        steps_left = self.images_left * request.steps_taken - sum(
            done for image, done in self.steps_done.items() if image not in self.finished
        )
        return self.image_seconds * steps_left / request.steps_taken

    def work(self) -> Work:
        return Work(self.images_left, self.seconds_left())

    def begin(self, at: float) -> bool:
        """Its first step was taken `at`; False for repeated news."""
        self.started_at = at if self.started_at is None else min(at, self.started_at)
        if self.status is not JobStatus.QUEUED:
            return False
        self.emit(Started)
        return True

    def step(self, image: int, step: int) -> None:
        """`step` steps of an image are done; repeated and old news changes nothing."""
        if step > self.steps_done.get(image, 0):
            self.steps_done[image] = step
            request = self.submission.request
            self.emit(Progress, step=sum(self.steps_done.values()), steps=request.steps_taken * request.n)

    def fail(self, image: int, error: ErrorInfo) -> None:
        """Image `image` will be missing."""
        self.steps_done.pop(image, None)
        self.failures[image] = error

    def errors(self) -> tuple[ImageError, ...]:
        seed = self.submission.request.seed
        return tuple(ImageError(image=i, seed=seed + i, error=self.failures[i]) for i in sorted(self.failures))

    def take_over(self, other: Job) -> None:
        """The work of another job, which has none left then."""
        self.pending, other.pending = other.pending, deque()
        self.steps_done, other.steps_done = other.steps_done, {}
        self.finished, other.finished = other.finished, {}
        self.failures, other.failures = other.failures, {}
        self.embeddings, other.embeddings = other.embeddings, None
        self.placed, other.placed = other.placed, set()
        self.image_seconds, self.turn, self.losses = other.image_seconds, other.turn, other.losses
        self.attempt = max(self.attempt, other.attempt)

    def timings(self) -> Timings:
        images = self.finished.values()
        started_at = min(image.started_at for image in images)
        return Timings(
            queue_ms=1e3 * max(0.0, started_at - self.created_at),
            encode_ms=1e3 * max(image.encode_s for image in images),
            denoise_ms=1e3 * sum(image.denoise_s for image in images),
            decode_ms=1e3 * sum(image.decode_s for image in images),
            total_ms=1e3 * max(0.0, time.time() - self.created_at),
        )

    def _event(self, kind: type[Event], data: dict[str, Any]) -> Event:
        self.seq += 1
        return kind(job_id=self.id, seq=self.seq, at=time.time(), **data)

    def _publish(self, event: Event) -> None:
        self.status = _STATUS_AFTER.get(type(event), self.status)
        if isinstance(event, _REPLACED):
            self.events = [old for old in self.events if type(old) is not type(event)]
        self.events.append(event)
        for listener in list(self.listeners):
            listener(event)

    def _newest(self, kind: type[E]) -> E | None:
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)


def _end_of(record: JobRecord) -> Terminal:
    assert record.completed_at is not None
    kind, data = _END_WITH[record.status]
    said = {name: getattr(record, name) for name in data}
    return kind(job_id=record.id, seq=record.seq, at=record.completed_at, **said)
