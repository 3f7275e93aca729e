"""The whole service at one moment."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib.metadata import version

from serve.jobs.estimate import seconds_until_done
from serve.jobs.fleet import Fleet
from serve.jobs.job import Job
from serve.messages import PRIORITIES, JobStatus, Phase, ReplicaState, Series, ServiceStatus
from serve.metrics.registry import Snapshot

DEPLOYMENTS = {"text_encoder": "TextEncoder", "denoiser": "Denoiser"}


def status_of(fleet: Fleet, jobs: Iterable[Job], uptime_s: float, now: float, *, paused: bool = False) -> ServiceStatus:
    """A service that has scaled to zero is ready: it takes work, and begins with it when a replica has started."""
    denoisers, text_encoders = fleet.ready("denoiser"), fleet.ready("text_encoder")
    ready = fleet.serves("denoiser") and fleet.serves("text_encoder")
    phase, fraction = (_phase(fleet, paused), 1.0) if ready else fleet.starting()
    drawing, starts_in = fleet.outlook(now)
    active = [job for job in jobs if not job.status.terminal]
    queued = sum(job.status is JobStatus.QUEUED for job in active)
    return ServiceStatus(
        ready=ready,
        phase=str(phase),
        fraction=fraction,
        queued=queued,
        running=len(active) - queued,
        denoisers=denoisers,
        text_encoders=text_encoders,
        eta_seconds=seconds_until_done(
            (job.seconds_left() for job in active), 0.0, 0 if paused else drawing, starts_in
        ),
        uptime_s=uptime_s,
        paused=paused,
    )


def _phase(fleet: Fleet, paused: bool) -> str:
    if paused:
        return "paused"
    return "asleep" if fleet.asleep() else Phase.READY


def snapshot_of(fleet: Fleet, jobs: Iterable[Job], model: str, uptime_s: float) -> Snapshot:
    """Every gauge of the Dispatcher."""
    jobs = list(jobs)
    waiting = [job for job in jobs if job.status is JobStatus.QUEUED and job.end is None]
    status = status_of(fleet, jobs, uptime_s, now=0.0)  # an estimate is no gauge
    active = [job for job in jobs if not job.status.terminal]
    gauges: dict[Series, float] = {
        ("zimage_queue_depth", (priority,)): sum(job.submission.priority == priority for job in waiting)
        for priority in PRIORITIES
    }
    gauges |= {
        ("zimage_queue_oldest_age_seconds", ()): max((time.time() - job.created_at for job in waiting), default=0.0),
        ("zimage_jobs_running", ()): status.running,
        ("zimage_backlog_gpu_seconds", ()): sum(job.seconds_left() for job in active),
        ("zimage_ready", ()): float(status.ready),
        ("zimage_uptime_seconds", ()): uptime_s,
        ("zimage_build_info", (version("zimage-serve"), model, fleet.engine)): 1.0,
    }
    replicas = fleet.states()
    pending = {model: 0, "text_encoder": 0, "denoiser": sum(len(job.pending) for job in waiting)}
    return Snapshot(gauges | _of_replicas(replicas), replicas, pending)


def _of_replicas(states: Iterable[ReplicaState]) -> dict[Series, float]:
    """What a replica does not know has no sample."""
    gauges: dict[Series, float] = {
        ("zimage_replicas", (deployment, str(phase))): 0.0 for deployment in DEPLOYMENTS.values() for phase in Phase
    }
    for state in states:
        gauges["zimage_replicas", (DEPLOYMENTS[state.role], str(state.phase))] += 1
        known = {
            "zimage_warmup_seconds": state.warmup_s,
            "zimage_vram_used_bytes": state.vram_used,
            "zimage_vram_reserved_bytes": state.vram_reserved,
            "zimage_vram_total_bytes": state.vram_total,
            "zimage_adapter_bytes": state.adapter_bytes,
            "zimage_gpu_utilization_ratio": state.gpu.utilization if state.gpu else None,
            "zimage_gpu_power_watts": state.gpu.power_w if state.gpu else None,
        }
        gauges |= {(name, (state.replica_id,)): value for name, value in known.items() if value is not None}
    return gauges
