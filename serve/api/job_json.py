"""A job as its owner reads it: the whole of it, and the parts of it that events carry."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from serve.api.deps import Door
from serve.api.job_body import as_body
from serve.messages import ErrorInfo, JobStatus, JobView, PresetUse, StoredImage, Timings


def job_json(door: Door, base: str, view: JobView) -> dict[str, Any]:
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
        "result": result_json(door, base, view.images) if succeeded else None,
        "timings": None if view.timings is None else timings_json(view.timings),
        "error": None if view.error is None else error_json(view.error),
        "attempt": view.attempt,
        "parent_id": view.parent_id,
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


def result_json(door: Door, base: str, images: Iterable[StoredImage]) -> dict[str, Any]:
    now = time.time()
    shown = [asdict(image) | {"url": door.asset_url(base, image.asset_id, now)} for image in images]
    return {"images": shown, "cache": "miss"}


def timings_json(timings: Timings) -> dict[str, float]:
    return {name: round(value, 1) for name, value in asdict(timings).items()}


def error_json(error: ErrorInfo) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "hint": error.hint,
    }


def rfc3339(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _urls(base: str, job_id: str) -> dict[str, str]:
    own = f"{base}/v1/jobs/{job_id}"
    return {"self": own, "cancel": f"{own}/cancel", "events": f"{own}/events"}
