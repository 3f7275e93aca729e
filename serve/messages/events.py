"""What happens to a job, as it is told."""

from __future__ import annotations

from dataclasses import dataclass

from serve.messages.outcomes import CacheUse, ErrorInfo, ImageError, StoredImage, Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. `seq` only grows within the job, also across restarts; `at` is Unix seconds."""

    job_id: str
    seq: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(Event):
    """Accepted, or moved in the queue: `position` is 1-based among `length` jobs that have not begun."""

    position: int
    length: int
    eta_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The first denoising step of the first image was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """`step` of `steps`, summed over all images of the job."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(Event):
    """A partial image, encoded in the requested format, waits in the asset store under `key`."""

    image: int
    index: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceling(Event):
    """A running job was told to stop and will at its next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal(Event):
    """After one of these nothing follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded(Terminal):
    """`cache` says whether its pictures were there, were drawn for it, or for an identical job that it joined.

    `errors` names the pictures that are missing; one at least is there.
    """

    images: tuple[StoredImage, ...]
    timings: Timings
    cache: CacheUse = "miss"
    errors: tuple[ImageError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Terminal):
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled(Terminal):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(Terminal):
    error: ErrorInfo
