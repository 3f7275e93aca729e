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
from serve.metrics.statistics import ModelStatistics, Reason, Statistics
from serve.metrics.tally import Deduplicated

SLO_ALPHAS = (3, 5)  # times the seconds that a job takes on an idle service
_ENDS = ("succeeded", "failed", "canceled", "expired")
_ALERTED = ("queue_full", "unavailable", "store_unavailable", "store_full")
_MISSED = {"queue_full", "deadline_infeasible"}


class Accounting:
    """Of several models, each for itself; what is asked of another one counts as the first's.

    `solo` says how many seconds a job would take on an idle service.
    """

    def __init__(
        self, models: Sequence[Statistics], snapshot: Callable[[], Snapshot], solo: Callable[[Submission], float]
    ) -> None:
        self._solo = solo
        self._tallies = Deduplicated()
        self._batches = Batches()
        self._first = models[0]
        self._statistics = {of.model: of for of in models}
        self.registry = Registry(models, snapshot)
        self._declare()

    def of(self, model: str) -> Statistics:
        return self._statistics.get(model, self._first)

    def statistics(self) -> dict[str, ModelStatistics]:
        """Of all models and their parts, by their names."""
        return {name: totals for of in self._statistics.values() for name, totals in of.models().items()}

    def refused(self, error: ZImageError, model: str, batch: Batch | None = None) -> None:
        """Never accepted, so no job: only counted."""
        self.registry.count("zimage_refusals_total", self.of(model).model, error.code)
        self._rejected(self.of(model), error.code, batch)

    def answered(self, record: JobRecord) -> None:
        """From the result cache, as it came."""
        submission, timings = record.submission, record.timings
        assert timings is not None
        took_s, of = timings.total_ms / 1e3, self.of(submission.request.model)
        self.registry.count("zimage_jobs_total", of.model, submission.priority, str(record.status))
        of.pipeline.cache_hit.add(took_s)
        self._success(submission, record.images, "hit", took_s, 0.0)

    def ended(self, job: Job) -> None:
        """When its end is decided, before anybody is told."""
        end, submission, of = job.end, job.submission, self.of(job.model)
        assert end is not None
        took_s = max(0.0, end.at - job.created_at)  # the clock may have been put back
        status = str(job.record().status)
        self.registry.count("zimage_jobs_total", of.model, submission.priority, status)
        if isinstance(end, Succeeded):
            waited_s = end.timings.queue_ms / 1e3
            self._success(submission, end.images, job.cache, took_s, waited_s)
            of.pipeline.cache_miss.add(took_s)
            of.denoiser.queue.add(waited_s)
        elif isinstance(end, Canceled):
            phase = "queued" if job.started_at is None else "running"
            self.registry.count("zimage_cancellations_total", of.model, phase)
            self._request(of, submission.batch, Outcome(reason="CANCELED", took_s=took_s))
        else:
            reason: Reason = "BACKEND" if isinstance(end, Failed) else "OTHER"
            self._request(of, submission.batch, Outcome(reason=reason, took_s=took_s))
        if isinstance(end, Failed | Expired):
            self._slo(of, met=lambda _: False)

    def accepted(self, submission: Submission) -> None:
        if submission.quota is not None:
            amount = submission.request.amount
            self.registry.count("zimage_quota_charged_total", "images", by=amount.images)
            self.registry.count("zimage_quota_charged_total", "pixel_steps", by=amount.pixel_steps)

    def generated(self, job: Job, answer: Generated) -> None:
        """A picture came back from a Denoiser; the embeddings of the first one were those of all."""
        of = self.of(job.model)
        if not job.finished:
            self._encoded(of, 2 if job.submission.request.guided else 1, answer)
        for stage in ("encode", "denoise", "decode", "file"):
            seconds = getattr(answer, f"{stage}_s")
            self.registry.observe("zimage_stage_duration_seconds", seconds, of.model, stage)
        output_s = answer.decode_s + answer.file_s
        for part in (of.pipeline, of.denoiser):
            part.ran(1)
            part.compute(infer_s=answer.denoise_s, output_s=output_s)
            part.executions += answer.executions
        of.denoiser.success.add(answer.denoise_s + output_s)

    def retried(self, model: str) -> None:
        self.registry.count("zimage_job_retries_total", self.of(model).model)

    def lost(self, model: str, role: str) -> None:
        self.registry.count("zimage_replica_restarts_total", model, DEPLOYMENTS[role])

    def tally(self, sender: str, tally: Tally | None) -> None:
        """What another process has counted; each of its tallies counts once."""
        if tally is not None and self._tallies.new(sender, tally):
            self.registry.apply(tally)
            for (name, labels), refused in tally.counts.items():
                if name == "zimage_refusals_total":  # by a Gateway: the queue is full, or no room for pictures
                    model, code = labels
                    for _ in range(round(refused)):
                        self._rejected(self.of(model), code)

    def _rejected(self, of: Statistics, code: str, batch: Batch | None = None) -> None:
        self._request(of, batch, Outcome(reason="REJECTED", took_s=0.0))
        if code in _MISSED:
            self._slo(of, met=lambda _: False)

    @staticmethod
    def _encoded(of: Statistics, prompts: int, answer: Generated) -> None:
        """Also where the embedding was remembered: perf_analyzer looks for a part of the ensemble that counted."""
        encoder = of.text_encoder
        encoder.success.add(answer.encode_s)
        encoder.queue.add(0.0)  # prompts have no queue of their own
        (encoder.cache_miss if answer.encodings else encoder.cache_hit).add(answer.encode_s)
        encoder.compute(infer_s=answer.encode_s, output_s=0.0)
        of.pipeline.compute_infer.add(answer.encode_s, 0)
        if answer.encodings:
            encoder.ran(prompts)
            encoder.executions += answer.encodings

    def webhook(self, outcome: str) -> None:
        self.registry.count("zimage_webhook_deliveries_total", outcome)

    def _success(
        self, submission: Submission, images: Sequence[StoredImage], cache: CacheUse, took_s: float, waited_s: float
    ) -> None:
        of = self.of(submission.request.model)
        self.registry.count("zimage_images_total", of.model, submission.request.output_format, by=len(images))
        for kind, name in (("adapter", submission.request.adapter), ("controlnet", submission.request.controlnet)):
            if name is not None:
                self.registry.count(f"zimage_{kind}_images_total", of.model, name, by=len(images))
        self.registry.count("zimage_cache_requests_total", of.model, "skip" if submission.cache == "skip" else cache)
        self.registry.observe("zimage_request_duration_seconds", took_s, of.model)
        self.registry.observe("zimage_queue_duration_seconds", waited_s, of.model)
        self._request(of, submission.batch, Outcome(reason=None, took_s=took_s, waited_s=waited_s))
        solo_s = self._solo(submission)
        self._slo(of, met=lambda alpha: took_s <= alpha * solo_s)

    def _request(self, of: Statistics, batch: Batch | None, outcome: Outcome) -> None:
        request = self._batches.add(batch, outcome)
        if request is None:
            return
        if request.reason is not None:
            of.pipeline.fail(request.reason, request.took_s)
            return
        of.pipeline.success.add(request.took_s)
        of.pipeline.queue.add(request.waited_s)

    def _slo(self, of: Statistics, met: Callable[[int], bool]) -> None:
        for alpha in SLO_ALPHAS:
            self.registry.count("zimage_slo_jobs_total", of.model, str(alpha), str(met(alpha)).lower())

    def _declare(self) -> None:
        """What may happen is there before it happens: a rate would otherwise miss the first time."""
        count = self.registry.count
        for model in self._statistics:
            self._declare_of(model)
        for outcome in ("delivered", "pending", "failed"):
            count("zimage_webhook_deliveries_total", outcome, by=0)
        for unit in ("images", "pixel_steps"):
            count("zimage_quota_charged_total", unit, by=0)

    def _declare_of(self, model: str) -> None:
        count = self.registry.count
        count("zimage_job_retries_total", model, by=0)
        for priority in PRIORITIES:
            for status in _ENDS:
                count("zimage_jobs_total", model, priority, status, by=0)
        for phase in ("queued", "running"):
            count("zimage_cancellations_total", model, phase, by=0)
        for deployment in DEPLOYMENTS.values():
            count("zimage_replica_restarts_total", model, deployment, by=0)
        for reason in _ALERTED:
            count("zimage_refusals_total", model, reason, by=0)
        for result in ("hit", "miss", "join", "skip"):
            count("zimage_cache_requests_total", model, result, by=0)
        for alpha in SLO_ALPHAS:
            for met in ("true", "false"):
                count("zimage_slo_jobs_total", model, str(alpha), met, by=0)
