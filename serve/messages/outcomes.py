"""What becomes of a job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from serve.errors import ZImageError
from serve.messages.requests import ImageFormat

CacheUse = Literal["hit", "miss", "join"]


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A finished picture in the asset store, or one that was there and has been `deleted`."""

    asset_id: str
    seed: int
    width: int
    height: int
    format: ImageFormat
    bytes: int
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    queue_ms: float = 0.0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An error as it is stored with a job and shown to its owner."""

    status: int
    code: str
    type: str
    message: str
    param: str | None = None
    hint: str | None = None
    retry_after: int | None = None

    @classmethod
    def of(cls, error: ZImageError) -> ErrorInfo:
        return cls(
            status=error.status,
            code=error.code,
            type=error.type,
            message=error.message,
            param=error.param,
            hint=error.hint,
            retry_after=error.retry_after,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageError:
    """Why picture `image` of a job is missing, while others of it are there."""

    image: int
    seed: int
    error: ErrorInfo
