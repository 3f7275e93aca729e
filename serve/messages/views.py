"""Answers to questions about jobs, pictures and the service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from serve.messages.outcomes import CacheUse, ErrorInfo, ImageError, JobStatus, StoredImage, Timings
from serve.messages.replicas import ReplicaState
from serve.messages.requests import ImageRequest, PresetUse, Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """The whole service at one moment, and each of its `models`, of which the longest wait and the least phase count.

    It is ready from when all of them were, as long as one of them is. `eta_seconds` estimates the wait of a job
    submitted now; `warnings` say to its operator what is wrong with it though it works.
    """

    ready: bool
    phase: str
    fraction: float
    queued: int
    running: int
    denoisers: int
    text_encoders: int
    eta_seconds: float | None
    uptime_s: float
    paused: bool = False
    warnings: tuple[str, ...] = ()
    models: dict[str, ServiceStatus] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The webhook of one job: `waiting` for its end, `pending` from then on until `delivered` or `failed`.

    `last_status` is the HTTP status of the last answer, `last_error` why there was none or why it does not count;
    `next_attempt_at` is Unix time.
    """

    job_id: str
    url: str
    status: Literal["waiting", "pending", "delivered", "failed"] = "waiting"
    attempts: int = 0
    last_status: int | None = None
    last_error: str | None = None
    next_attempt_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica as it last reported, and how many images are placed on it."""

    state: ReplicaState
    placed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStats:
    """`waiting` by priority, `ended` by status since the Dispatcher started; the rest is of the last five minutes."""

    status: ServiceStatus
    waiting: dict[str, int]
    replicas: tuple[ReplicaView, ...]
    ended: dict[str, int]
    response_s: float | None
    images_per_minute: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as its owner sees it at one moment; times are Unix seconds.

    `seq` is that of its newest event: watching from there misses nothing. Position, length and eta only while queued.
    """

    id: str
    user: str
    status: JobStatus
    seq: int
    request: ImageRequest
    priority: Priority
    deadline_ms: int | None
    attempt: int
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    step: int = 0
    steps: int = 0
    position: int | None = None
    length: int | None = None
    eta_seconds: float | None = None
    images: tuple[StoredImage, ...] = ()
    timings: Timings | None = None
    cache: CacheUse = "miss"
    errors: tuple[ImageError, ...] = ()
    error: ErrorInfo | None = None
    parent_id: str | None = None
    webhook: Delivery | None = None
    preset: PresetUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Newest first, strictly older than job `before`; `text` is looked for in prompts, without case.

    With `input` only those that keep the input picture of this name.
    """

    user: str | None = None
    statuses: frozenset[JobStatus] = frozenset()
    text: str = ""
    input: str | None = None
    before: str | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetView:
    """A finished picture as its owner sees it; `request` is that of its whole job, `created_at` Unix seconds."""

    image: StoredImage
    job_id: str
    user: str
    created_at: float
    request: ImageRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetQuery:
    """Newest first, strictly after asset `after` in that order; `text` as in JobQuery. `ids` limits it to some."""

    user: str | None = None
    text: str = ""
    after: str | None = None
    ids: frozenset[str] | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What a wish to delete pictures came to; other users' are unknown."""

    deleted: tuple[str, ...]
    unknown: tuple[str, ...] = ()
