"""A job as its owner reads it: the whole of it, and the parts of it that events carry."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from serve.api.job_body import as_body
from serve.messages import (
    Delivery,
    ErrorInfo,
    ImageError,
    JobStatus,
    JobView,
    PresetUse,
    StoredImage,
    Succeeded,
    Timings,
)


class Signs(Protocol):
    """Makes links to pictures: a Door, or Links alone."""

    def asset_url(self, base: str, asset_id: str, now: float) -> str: ...

    def thumbnail_url(self, base: str, asset_id: str, now: float) -> str: ...


def job_json(door: Signs, base: str, view: JobView) -> dict[str, Any]:
    """`base` is what its absolute URLs begin with."""
    deadline = None if view.deadline_ms is None else view.created_at + view.deadline_ms / 1e3
    succeeded = view.status is JobStatus.SUCCEEDED
    return {
        "id": view.id,
        "object": "image.job",
        "status": view.status.value,
        "status_seq": view.seq,
        "created_at": rfc3339(view.created_at),
        "started_at": rfc3339(view.started_at),
        "completed_at": rfc3339(view.completed_at),
        "expires_at": rfc3339(deadline),
        "model": view.request.model,
        "request": as_body(view),
        "progress": progress_json(view.step, view.steps),
        "queue": None if view.position is None else queue_json(view.position, view.length, view.eta_seconds),
        "result": result_json(door, base, view) if succeeded else None,
        "timings": None if view.timings is None else timings_json(view.timings),
        "error": None if view.error is None else error_json(view.error),
        "attempt": view.attempt,
        "parent_id": view.parent_id,
        "webhook": None if view.webhook is None else webhook_json(view.webhook),
        "preset": None if view.preset is None else preset_json(view.preset),
        "urls": _urls(base, view.id),
    }


def preset_json(use: PresetUse) -> dict[str, Any]:
    return {"name": use.preset, "style_preset": use.style_preset, "version": use.version, "prompt": use.prompt}


def progress_json(step: int, steps: int) -> dict[str, Any]:
    return {"step": step, "steps": steps, "fraction": round(step / steps, 4) if steps else 0.0}


def queue_json(position: int, length: int | None, eta_seconds: float | None) -> dict[str, Any]:
    eta = None if eta_seconds is None else round(eta_seconds, 2)
    return {"position": position, "length": length, "eta_seconds": eta}


def result_json(door: Signs, base: str, result: JobView | Succeeded) -> dict[str, Any]:
    now = time.time()
    images = [asdict(image) | urls_json(door, base, image, now) for image in result.images]
    return {"images": images, "cache": result.cache} | partial_json(result.errors)


def partial_json(errors: tuple[ImageError, ...]) -> dict[str, Any]:
    """Which pictures are missing, and why."""
    missing = [{"image": it.image, "seed": it.seed, "error": error_json(it.error)} for it in errors]
    return {"partial": bool(errors), "errors": missing}


def timings_json(timings: Timings) -> dict[str, float]:
    return {name: round(value, 1) for name, value in asdict(timings).items()}


def webhook_json(delivery: Delivery) -> dict[str, Any]:
    shown = asdict(delivery) | {"next_attempt_at": rfc3339(delivery.next_attempt_at)}
    del shown["job_id"]
    return shown


def error_json(error: ErrorInfo) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "hint": error.hint,
    }


def urls_json(door: Signs, base: str, image: StoredImage, now: float) -> dict[str, str | None]:
    """Null where the picture has been deleted."""
    if image.deleted:
        return {"url": None, "thumbnail_url": None}
    return {
        "url": door.asset_url(base, image.asset_id, now),
        "thumbnail_url": door.thumbnail_url(base, image.asset_id, now),
    }


def rfc3339(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _urls(base: str, job_id: str) -> dict[str, str]:
    own = f"{base}/v1/jobs/{job_id}"
    return {"self": own, "cancel": f"{own}/cancel", "events": f"{own}/events"}
