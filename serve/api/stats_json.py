"""`GET /v1/stats`: a flat object that a status bar can read, and the replicas for those who look closer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serve.api.hot_json import hot_json
from serve.hot import HotStatus
from serve.messages import ReplicaView, ServiceStats, ServiceStatus


def stats_json(stats: ServiceStats, hot: Iterable[HotStatus]) -> dict[str, Any]:
    """What is not known is null, never 0."""
    status = stats.status
    states = [replica.state for replica in stats.replicas]
    response_s, eta_s = stats.response_s, status.eta_seconds
    return {
        "object": "stats",
        "ready": status.ready,
        "paused": status.paused,
        "active_requests": status.running,
        "queue_length": status.queued,
        "queue_by_priority": stats.waiting,
        "estimated_wait_seconds": None if eta_s is None else round(eta_s, 2),
        "avg_response_time_ms": None if response_s is None else round(response_s * 1e3, 1),
        "images_per_minute": round(stats.images_per_minute, 2),
        "jobs_ended": stats.ended,
        "gpu_memory_used_gb": _gb(state.vram_used for state in states),
        "gpu_memory_total_gb": _gb(state.vram_total for state in states),
        "uptime_minutes": round(status.uptime_s / 60, 2),
        "denoisers": status.denoisers,
        "text_encoders": status.text_encoders,
        "models": {name: model_json(of) for name, of in status.models.items()},
        "replicas": [_replica_json(replica) for replica in stats.replicas],
        "config": {file.name: hot_json(file) for file in hot},
    }


def model_json(status: ServiceStatus) -> dict[str, Any]:
    """One of the models, in what `/v1/stats`, `/v1/queue` and `/readyz` say."""
    eta_s = status.eta_seconds
    return {
        "ready": status.ready,
        "phase": status.phase,
        "progress": status.fraction,
        "queued": status.queued,
        "running": status.running,
        "denoisers": status.denoisers,
        "text_encoders": status.text_encoders,
        "estimated_wait_seconds": None if eta_s is None else round(eta_s, 2),
    }


def _replica_json(replica: ReplicaView) -> dict[str, Any]:
    state = replica.state
    return {
        "id": state.replica_id,
        "model": state.model,
        "role": state.role,
        "phase": state.phase.value,
        "progress": state.fraction,
        "device": state.device or None,
        "images": replica.placed,
        "slots": state.slots or None,
        "gpu_memory_used_gb": _gb([state.vram_used]),
        "gpu_memory_total_gb": _gb([state.vram_total]),
    }


def _gb(amounts: Iterable[int | None]) -> float | None:
    """10^9 bytes, over the replicas that know."""
    known = [amount for amount in amounts if amount is not None]
    return round(sum(known) / 1e9, 3) if known else None
