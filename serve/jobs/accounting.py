"""What happens to jobs, counted: every metric and every Triton statistic of a job is told here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from serve.errors import ZImageError
from serve.jobs.job import Job
from serve.messages import (
    PRIORITIES,
    Canceled,
    Expired,
    Failed,
    Generated,
    JobStatus,
    Phase,
    ReplicaState,
    Succeeded,
)
from serve.metrics.registry import Registry, Snapshot
from serve.metrics.statistics import Reason, Statistics

SLO_ALPHAS = (3, 5)  # times the seconds that a job takes on an idle service
DEPLOYMENTS = {"text_encoder": "TextEncoder", "denoiser": "Denoiser"}
_ENDS = ("succeeded", "failed", "canceled", "expired")
_MISSED = {"queue_full", "deadline_infeasible"}


class Accounting:
    def __init__(self, model: str, snapshot: Callable[[], Snapshot]) -> None:
        self.model = model
        self.statistics = Statistics(model)
        self.registry = Registry(self.statistics, snapshot)
        self._declare()

    def refused(self, error: ZImageError) -> None:
        """Never accepted, so no job: only counted."""
        self.registry.count("zimage_refusals_total", error.code)
        self._fail("REJECTED", 0.0)
        if error.code in _MISSED:
            self._slo(met=lambda _: False)

    def ended(self, job: Job, phase: JobStatus) -> None:
        """`phase` is what the job was doing when its end was decided."""
        end, submission = job.end, job.submission
        assert end is not None
        took_s = end.at - job.created_at
        status = str(job.record().status)
        self.registry.count("zimage_jobs_total", self.model, submission.priority, status)
        if isinstance(end, Succeeded):
            self._succeeded(job, end, took_s)
        elif isinstance(end, Canceled):
            self.registry.count("zimage_cancellations_total", "queued" if phase is JobStatus.QUEUED else "running")
            self._fail("CANCELED", took_s)
        else:
            self._fail("BACKEND" if isinstance(end, Failed) else "OTHER", took_s)
        if isinstance(end, Failed | Expired):
            self._slo(met=lambda _: False)

    def generated(self, answer: Generated) -> None:
        """One picture came back from a Denoiser."""
        for stage in ("encode", "denoise", "decode", "file"):
            seconds = getattr(answer, f"{stage}_s")
            self.registry.observe("zimage_stage_duration_seconds", seconds, self.model, stage)
        output_s = answer.decode_s + answer.file_s
        for part in (self.statistics.pipeline, self.statistics.denoiser):
            part.ran(1)
            part.compute_infer.add(answer.denoise_s)
            part.compute_output.add(output_s)
            part.executions += answer.executions
        self.statistics.denoiser.success.add(answer.denoise_s + output_s)

    def encoded(self, prompts: int, seconds: float) -> None:
        for part in (self.statistics.pipeline, self.statistics.text_encoder):
            part.compute_infer.add(seconds, prompts)
        encoder = self.statistics.text_encoder
        encoder.ran(prompts)
        encoder.success.add(seconds, prompts)
        encoder.execute(prompts, 1, seconds)

    def retried(self) -> None:
        self.registry.count("zimage_job_retries_total")

    def lost(self, role: str) -> None:
        self.registry.count("zimage_replica_restarts_total", DEPLOYMENTS[role])

    def _succeeded(self, job: Job, end: Succeeded, took_s: float) -> None:
        request, totals = job.submission.request, self.statistics.pipeline
        waited_s = end.timings.queue_ms / 1e3
        self.registry.count("zimage_images_total", self.model, request.output_format, by=len(end.images))
        self.registry.observe("zimage_request_duration_seconds", took_s, self.model)
        self.registry.observe("zimage_queue_duration_seconds", waited_s, self.model)
        totals.success.add(took_s)
        totals.queue.add(waited_s)
        self.statistics.denoiser.queue.add(waited_s)
        solo_s = job.image_seconds * request.n
        self._slo(met=lambda alpha: took_s <= alpha * solo_s)

    def _fail(self, reason: Reason, seconds: float) -> None:
        self.statistics.pipeline.fail(reason, seconds)

    def _slo(self, met: Callable[[int], bool]) -> None:
        for alpha in SLO_ALPHAS:
            self.registry.count("zimage_slo_jobs_total", str(alpha), str(met(alpha)).lower())

    def _declare(self) -> None:
        """What may happen is there before it happens: a rate would otherwise miss the first time."""
        count = self.registry.count
        for priority in PRIORITIES:
            for status in _ENDS:
                count("zimage_jobs_total", self.model, priority, status, by=0)
        for phase in ("queued", "running"):
            count("zimage_cancellations_total", phase, by=0)
        for deployment in DEPLOYMENTS.values():
            count("zimage_replica_restarts_total", deployment, by=0)
        for alpha in SLO_ALPHAS:
            for met in ("true", "false"):
                count("zimage_slo_jobs_total", str(alpha), met, by=0)


def replica_gauges(states: Iterable[ReplicaState]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Of the replicas that send heartbeats; what a replica does not know has no sample."""
    gauges: dict[tuple[str, tuple[str, ...]], float] = {
        ("zimage_replicas", (deployment, str(phase))): 0.0 for deployment in DEPLOYMENTS.values() for phase in Phase
    }
    for state in states:
        gauges["zimage_replicas", (DEPLOYMENTS[state.role], str(state.phase))] += 1
        known = {
            "zimage_warmup_seconds": state.warmup_s,
            "zimage_vram_used_bytes": state.vram_used,
            "zimage_vram_reserved_bytes": state.vram_reserved,
            "zimage_vram_total_bytes": state.vram_total,
            "zimage_gpu_utilization_ratio": state.gpu.utilization if state.gpu else None,
            "zimage_gpu_power_watts": state.gpu.power_w if state.gpu else None,
        }
        gauges |= {(name, (state.replica_id,)): value for name, value in known.items() if value is not None}
    return gauges
