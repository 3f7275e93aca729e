"""What happens to jobs, counted: every metric and every Triton statistic of a job is told here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve.errors import ZImageError
from serve.jobs.batches import Batches, Outcome
from serve.jobs.job import Job
from serve.jobs.record import JobRecord
from serve.jobs.status import DEPLOYMENTS
from serve.messages import (
    PRIORITIES,
    Batch,
    CacheUse,
    Canceled,
    Expired,
    Failed,
    Generated,
    StoredImage,
    Submission,
    Succeeded,
    Tally,
)
from serve.metrics.registry import Registry, Snapshot
from serve.metrics.statistics import Reason, Statistics
from serve.metrics.tally import Deduplicated

SLO_ALPHAS = (3, 5)  # times the seconds that a job takes on an idle service
_ENDS = ("succeeded", "failed", "canceled", "expired")
_ALERTED = ("queue_full", "unavailable", "store_unavailable", "store_full")
_MISSED = {"queue_full", "deadline_infeasible"}


class Accounting:
    """`solo` says how many seconds a job would take on an idle service."""

    def __init__(self, model: str, snapshot: Callable[[], Snapshot], solo: Callable[[Submission], float]) -> None:
        self.model = model
        self._solo = solo
        self._tallies = Deduplicated()
        self._batches = Batches()
        self.statistics = Statistics(model)
        self.registry = Registry(self.statistics, snapshot)
        self._declare()

    def refused(self, error: ZImageError, batch: Batch | None = None) -> None:
        """Never accepted, so no job: only counted."""
        self.registry.count("zimage_refusals_total", error.code)
        self._rejected(error.code, batch)

    def answered(self, record: JobRecord) -> None:
        """From the result cache, as it came."""
        submission, timings = record.submission, record.timings
        assert timings is not None
        took_s = timings.total_ms / 1e3
        self.registry.count("zimage_jobs_total", self.model, submission.priority, str(record.status))
        self.statistics.pipeline.cache_hit.add(took_s)
        self._success(submission, record.images, "hit", took_s, 0.0)

    def ended(self, job: Job) -> None:
        """When its end is decided, before anybody is told."""
        end, submission = job.end, job.submission
        assert end is not None
        took_s = max(0.0, end.at - job.created_at)  # the clock may have been put back
        status = str(job.record().status)
        self.registry.count("zimage_jobs_total", self.model, submission.priority, status)
        if isinstance(end, Succeeded):
            waited_s = end.timings.queue_ms / 1e3
            self._success(submission, end.images, job.cache, took_s, waited_s)
            self.statistics.pipeline.cache_miss.add(took_s)
            self.statistics.denoiser.queue.add(waited_s)
        elif isinstance(end, Canceled):
            self.registry.count("zimage_cancellations_total", "queued" if job.started_at is None else "running")
            self._request(submission.batch, Outcome(reason="CANCELED", took_s=took_s))
        else:
            reason: Reason = "BACKEND" if isinstance(end, Failed) else "OTHER"
            self._request(submission.batch, Outcome(reason=reason, took_s=took_s))
        if isinstance(end, Failed | Expired):
            self._slo(met=lambda _: False)

    def accepted(self, submission: Submission) -> None:
        if submission.quota is not None:
            amount = submission.request.amount
            self.registry.count("zimage_quota_charged_total", "images", by=amount.images)
            self.registry.count("zimage_quota_charged_total", "pixel_steps", by=amount.pixel_steps)

    def generated(self, job: Job, answer: Generated) -> None:
        """A picture came back from a Denoiser; the embeddings of the first one were those of all."""
        if not job.finished:
            self._encoded(2 if job.submission.request.guided else 1, answer)
        for stage in ("encode", "denoise", "decode", "file"):
            seconds = getattr(answer, f"{stage}_s")
            self.registry.observe("zimage_stage_duration_seconds", seconds, self.model, stage)
        output_s = answer.decode_s + answer.file_s
        for part in (self.statistics.pipeline, self.statistics.denoiser):
            part.ran(1)
            part.compute(infer_s=answer.denoise_s, output_s=output_s)
            part.executions += answer.executions
        self.statistics.denoiser.success.add(answer.denoise_s + output_s)

    def retried(self) -> None:
        self.registry.count("zimage_job_retries_total")

    def lost(self, role: str) -> None:
        self.registry.count("zimage_replica_restarts_total", DEPLOYMENTS[role])

    def tally(self, sender: str, tally: Tally | None) -> None:
        """What another process has counted; each of its tallies counts once."""
        if tally is not None and self._tallies.new(sender, tally):
            self.registry.apply(tally)
            for (name, labels), refused in tally.counts.items():
                if name == "zimage_refusals_total":  # by a Gateway: the queue is full, or no room for pictures
                    for _ in range(round(refused)):
                        self._rejected(labels[0])

    def _rejected(self, code: str, batch: Batch | None = None) -> None:
        self._request(batch, Outcome(reason="REJECTED", took_s=0.0))
        if code in _MISSED:
            self._slo(met=lambda _: False)

    def _encoded(self, prompts: int, answer: Generated) -> None:
        """Also where the embedding was remembered: perf_analyzer looks for a part of the ensemble that counted."""
        encoder = self.statistics.text_encoder
        encoder.success.add(answer.encode_s)
        encoder.queue.add(0.0)  # prompts have no queue of their own
        (encoder.cache_miss if answer.encodings else encoder.cache_hit).add(answer.encode_s)
        encoder.compute(infer_s=answer.encode_s, output_s=0.0)
        self.statistics.pipeline.compute_infer.add(answer.encode_s, 0)
        if answer.encodings:
            encoder.ran(prompts)
            encoder.executions += answer.encodings

    def webhook(self, outcome: str) -> None:
        self.registry.count("zimage_webhook_deliveries_total", outcome)

    def _success(
        self, submission: Submission, images: Sequence[StoredImage], cache: CacheUse, took_s: float, waited_s: float
    ) -> None:
        self.registry.count("zimage_images_total", self.model, submission.request.output_format, by=len(images))
        if (adapter := submission.request.adapter) is not None:
            self.registry.count("zimage_adapter_images_total", self.model, adapter, by=len(images))
        self.registry.count("zimage_cache_requests_total", "skip" if submission.cache == "skip" else cache)
        self.registry.observe("zimage_request_duration_seconds", took_s, self.model)
        self.registry.observe("zimage_queue_duration_seconds", waited_s, self.model)
        self._request(submission.batch, Outcome(reason=None, took_s=took_s, waited_s=waited_s))
        solo_s = self._solo(submission)
        self._slo(met=lambda alpha: took_s <= alpha * solo_s)

    def _request(self, batch: Batch | None, outcome: Outcome) -> None:
        request = self._batches.add(batch, outcome)
        if request is None:
            return
        if request.reason is not None:
            self.statistics.pipeline.fail(request.reason, request.took_s)
            return
        self.statistics.pipeline.success.add(request.took_s)
        self.statistics.pipeline.queue.add(request.waited_s)

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
        for reason in _ALERTED:
            count("zimage_refusals_total", reason, by=0)
        for result in ("hit", "miss", "join", "skip"):
            count("zimage_cache_requests_total", result, by=0)
        for outcome in ("delivered", "pending", "failed"):
            count("zimage_webhook_deliveries_total", outcome, by=0)
        for unit in ("images", "pixel_steps"):
            count("zimage_quota_charged_total", unit, by=0)
        for alpha in SLO_ALPHAS:
            for met in ("true", "false"):
                count("zimage_slo_jobs_total", str(alpha), met, by=0)
