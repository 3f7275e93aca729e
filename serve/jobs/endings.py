"""What is said of a job after its end: one line in the log, and one trace. Counting is accounting's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import structlog

from serve.jobs.job import Job
from serve.jobs.record import JobRecord
from serve.logs import origin
from serve.messages import Generated, JobStatus, Span
from serve.pseudonym import Pseudonyms
from serve.settings import Settings
from serve.traceparent import parent_of, trace_of
from serve.tracing.open import open_traces
from serve.tracing.trace import JobTrace, Part, Value

log = structlog.get_logger()


class Endings:
    """Without prompts, but for the log where `log_prompts` says so; users under their pseudonyms."""

    def __init__(self, settings: Settings) -> None:
        self._pseudonyms = Pseudonyms.of(settings)
        self._log_prompts = settings.log_prompts
        self._traces = open_traces(settings)

    def ended(self, job: Job) -> None:
        self._tell(job.record(), [job.finished[image] for image in sorted(job.finished)])

    def answered(self, record: JobRecord) -> None:
        """From the result cache, as it came."""
        self._tell(record, [])

    async def close(self) -> None:
        await asyncio.to_thread(self._traces.close)

    def _tell(self, record: JobRecord, answers: Sequence[Generated]) -> None:
        submission, request = record.submission, record.submission.request
        assert record.completed_at is not None
        about: dict[str, Value] = {
            "status": str(record.status),
            "model": request.model,
            "priority": submission.priority,
            "width": request.width,
            "height": request.height,
            "steps": request.steps_taken,
            "n": request.n,
            "images": len(record.images),
            "cache": record.cache,
            "attempt": record.attempt,
            "user": self._pseudonyms(submission.user),
        }
        if record.error is not None:
            about["error"] = record.error.code
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt} if self._log_prompts else {}
        log.info("job ended", **origin(submission), **about, **_milliseconds(record, answers), **prompts)
        self._traces.tell(
            JobTrace(
                trace_id=trace_of(record.id, submission.traceparent),
                parent=parent_of(submission.traceparent),
                span=Span(record.created_at, record.completed_at),
                parts=list(_parts(record, answers)),
                attributes={f"zimage.{name}": value for name, value in {**origin(submission), **about}.items()},
                error=_failure(record),
            )
        )


def _milliseconds(record: JobRecord, answers: Sequence[Generated]) -> Mapping[str, float]:
    """What was measured: of one that never began, only how long it was there."""
    assert record.completed_at is not None
    spent: dict[str, float] = {}
    if record.timings is not None:
        spent = asdict(record.timings)
        if answers:
            spent["file_ms"] = 1e3 * sum(answer.file_s for answer in answers)
    elif record.started_at is not None:
        spent["queue_ms"] = 1e3 * max(0.0, record.started_at - record.created_at)
    spent["total_ms"] = 1e3 * (record.completed_at - record.created_at)
    return {name: round(value, 1) for name, value in spent.items()}


def _parts(record: JobRecord, answers: Sequence[Generated]) -> Iterator[Part]:
    """`queue` as the metric of this name: until the first step. One that ended before it was in the queue all the time.

    All pictures of a job share one encoding.
    """
    if record.cache != "hit":
        until = record.completed_at if record.started_at is None else record.started_at
        assert until is not None
        yield Part("queue", Span(record.created_at, max(record.created_at, until)))
    for image, answer in enumerate(answers):
        for stage in ("encode", "denoise", "decode", "file"):
            if stage in answer.spans and not (stage == "encode" and image):
                yield Part(stage, answer.spans[stage], {} if stage == "encode" else {"zimage.seed": answer.image.seed})


def _failure(record: JobRecord) -> str | None:
    if record.status in (JobStatus.SUCCEEDED, JobStatus.CANCELED):
        return None
    return record.error.code if record.error else str(record.status)
