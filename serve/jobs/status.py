"""The whole service at one moment."""

from __future__ import annotations

from collections.abc import Iterable

from serve.jobs.estimate import seconds_until_done
from serve.jobs.fleet import Fleet
from serve.jobs.job import Job
from serve.messages import JobStatus, Phase, ServiceStatus


def status_of(fleet: Fleet, jobs: Iterable[Job], uptime_s: float, *, paused: bool = False) -> ServiceStatus:
    denoisers, text_encoders = fleet.ready("denoiser"), fleet.ready("text_encoder")
    ready = denoisers > 0 and text_encoders > 0
    phase, fraction = ("paused" if paused else Phase.READY, 1.0) if ready else fleet.starting()
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
        eta_seconds=seconds_until_done((job.seconds_left() for job in active), 0.0, 0 if paused else denoisers),
        uptime_s=uptime_s,
        paused=paused,
    )
