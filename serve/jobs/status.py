"""A model, and the whole service, at one moment."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version

from serve.jobs.estimate import seconds_until_done
from serve.jobs.fleet import Fleet
from serve.jobs.job import Job
from serve.messages import PRIORITIES, JobStatus, Phase, ReplicaState, Series, ServiceStatus
from serve.metrics.registry import Snapshot

DEPLOYMENTS = {"text_encoder": "TextEncoder", "denoiser": "Denoiser"}


def status_of(fleet: Fleet, jobs: Iterable[Job], uptime_s: float, now: float, *, paused: bool = False) -> ServiceStatus:
    """Of one model. One that has scaled to zero is ready: it takes work, and begins when a replica has started."""
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


def whole(models: dict[str, ServiceStatus], *, started: bool) -> ServiceStatus:
    """Of the service; `started` says that all models were ready once, or that it has got further ones meanwhile.

    One that is dead shall not take the others out of a load balancer, but none is told to be there before all are.
    """
    first, *_ = models.values()
    if len(models) == 1:
        return replace(first, models=models)
    ready = started and any(status.ready for status in models.values())
    least = min(models.values(), key=lambda status: (status.ready, status.fraction))
    etas = [status.eta_seconds for status in models.values()]
    return replace(
        first,
        ready=ready,
        phase=least.phase,
        fraction=least.fraction,
        queued=sum(status.queued for status in models.values()),
        running=sum(status.running for status in models.values()),
        denoisers=sum(status.denoisers for status in models.values()),
        text_encoders=sum(status.text_encoders for status in models.values()),
        eta_seconds=None if None in etas else max(eta for eta in etas if eta is not None),
        models=models,
    )


def _phase(fleet: Fleet, paused: bool) -> str:
    if paused:
        return "paused"
    return "asleep" if fleet.asleep() else Phase.READY


def snapshot_of(fleet: Fleet, jobs: Iterable[Job], model: str, uptime_s: float, tail: str = "") -> Snapshot:
    """Every gauge of one model."""
    jobs = list(jobs)
    waiting = [job for job in jobs if job.status is JobStatus.QUEUED and job.end is None]
    status = status_of(fleet, jobs, uptime_s, now=0.0)  # an estimate is no gauge
    active = [job for job in jobs if not job.status.terminal]
    gauges: dict[Series, float] = {
        ("zimage_queue_depth", (model, priority)): sum(job.submission.priority == priority for job in waiting)
        for priority in PRIORITIES
    }
    gauges |= {
        ("zimage_queue_oldest_age_seconds", (model,)): max(
            (time.time() - job.created_at for job in waiting), default=0.0
        ),
        ("zimage_jobs_running", (model,)): status.running,
        ("zimage_backlog_gpu_seconds", (model,)): sum(job.seconds_left() for job in active),
        ("zimage_ready", (model,)): float(status.ready),
        ("zimage_uptime_seconds", ()): uptime_s,
        ("zimage_build_info", (version("zimage-serve"), model, fleet.engine)): 1.0,
    }
    replicas = fleet.states()
    images = sum(len(job.pending) for job in waiting)
    pending = {model: 0, f"text_encoder{tail}": 0, f"denoiser{tail}": images}
    return Snapshot(gauges | _of_replicas(replicas, model), replicas, pending)


def _of_replicas(states: Iterable[ReplicaState], model: str) -> dict[Series, float]:
    """What a replica does not know has no sample."""
    gauges: dict[Series, float] = {
        ("zimage_replicas", (model, deployment, str(phase))): 0.0
        for deployment in DEPLOYMENTS.values()
        for phase in Phase
    }
    for state in states:
        gauges["zimage_replicas", (model, DEPLOYMENTS[state.role], str(state.phase))] += 1
        known = {
            "zimage_warmup_seconds": state.warmup_s,
            "zimage_vram_used_bytes": state.vram_used,
            "zimage_vram_reserved_bytes": state.vram_reserved,
            "zimage_vram_total_bytes": state.vram_total,
            "zimage_adapter_bytes": state.adapter_bytes,
            "zimage_controlnet_bytes": state.controlnet_bytes,
            "zimage_gpu_utilization_ratio": state.gpu.utilization if state.gpu else None,
            "zimage_gpu_power_watts": state.gpu.power_w if state.gpu else None,
        }
        gauges |= {(name, (state.replica_id,)): value for name, value in known.items() if value is not None}
    return gauges
