"""A job as it is stored: one row, with what is never searched as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from serve.messages import CacheUse, ErrorInfo, ImageError, JobStatus, StoredImage, Submission, Timings

VERSION = 1  # of the JSON in a row; rows of older versions stay readable

_SUBMISSION = TypeAdapter(Submission)
_IMAGES = TypeAdapter(tuple[StoredImage, ...])
_ERRORS = TypeAdapter(tuple[ImageError, ...])
_TIMINGS = TypeAdapter(Timings | None)
_ERROR = TypeAdapter(ErrorInfo | None)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """No event of the job has a higher number than `seq`; `losses` counts the replicas that it has lost.

    `crashes` counts the times that the service died while the job was on a replica. The present time on one is counted
    in advance, and taken back when it ends in any other way: what is stored is true whenever the service dies.
    While it has not ended, jobs of one `cache_key` share their work; a succeeded one that has it may answer later ones.
    """

    submission: Submission
    created_at: float
    status: JobStatus = JobStatus.QUEUED
    seq: int = 0
    attempt: int = 1
    losses: int = 0
    crashes: int = 0
    started_at: float | None = None
    completed_at: float | None = None
    images: tuple[StoredImage, ...] = ()
    timings: Timings | None = None
    cache: CacheUse = "miss"
    cache_key: str | None = None
    errors: tuple[ImageError, ...] = ()
    error: ErrorInfo | None = None

    @property
    def id(self) -> str:
        return self.submission.job_id

    @property
    def key(self) -> tuple[str, str] | None:
        key = self.submission.idempotency_key
        return None if key is None else (self.submission.user, key)


def searchable(text: str) -> str:
    """Without case, and without what PostgreSQL does not take in a text."""
    return text.casefold().replace("\0", "").encode("utf-8", "replace").decode()


def first_row(record: JobRecord) -> dict[str, Any]:
    submission = record.submission
    return state_row(record) | {
        "id": record.id,
        "user": submission.user,
        "version": VERSION,
        "submission": _SUBMISSION.dump_json(submission).decode(),
        "search": searchable(submission.own_prompt),
        "idempotency_key": submission.idempotency_key,
        "body_sha256": submission.body_sha256,
        "parent_id": submission.parent_id,
        "created_at": record.created_at,
    }


def images_of(text: str) -> tuple[StoredImage, ...]:
    """From the column of that name."""
    return _IMAGES.validate_json(text)


def state_row(record: JobRecord) -> dict[str, Any]:
    """The columns that change during a job's life."""
    return {
        "status": str(record.status),
        "seq": record.seq,
        "attempt": record.attempt,
        "losses": record.losses,
        "crashes": record.crashes,
        "started_at": record.started_at,
        "completed_at": record.completed_at,
        "images": _IMAGES.dump_json(record.images).decode(),
        "timings": _TIMINGS.dump_json(record.timings).decode(),
        "cache": record.cache,
        "cache_key": record.cache_key,
        "errors": _ERRORS.dump_json(record.errors).decode(),
        "error": _ERROR.dump_json(record.error).decode(),
    }


def from_row(row: Mapping[str, Any]) -> JobRecord:
    return JobRecord(
        submission=_SUBMISSION.validate_json(row["submission"]),
        created_at=row["created_at"],
        status=JobStatus(row["status"]),
        seq=row["seq"],
        attempt=row["attempt"],
        losses=row["losses"],
        crashes=row["crashes"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        images=_IMAGES.validate_json(row["images"]),
        timings=_TIMINGS.validate_json(row["timings"]),
        cache=row["cache"],
        cache_key=row["cache_key"],
        errors=_ERRORS.validate_json(row["errors"]),
        error=_ERROR.validate_json(row["error"]),
    )
