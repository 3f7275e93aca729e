"""What is said of a job when it has ended, in the log and as a trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from serve.errors import ConfigError
from serve.jobs import endings
from serve.jobs.endings import Endings
from serve.jobs.job import Job
from serve.messages import Canceled, ErrorInfo, Failed, Generated, Span, StoredImage, Submission, Succeeded
from serve.pseudonym import Pseudonyms
from serve.settings import Settings
from serve.tracing import open as tracing
from serve.tracing.otel import OpenTelemetry
from tests.unit.replicas import Drawing, beat, dispatcher_over, last, order, submitted

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
T = 1_795_311_000.0  # Unix seconds


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    traces = OpenTelemetry(SimpleSpanProcessor(exporter), "test")
    monkeypatch.setattr(endings, "open_traces", lambda settings: traces)
    yield exporter
    traces.close()


def drawn(image: int = 0) -> Generated:
    """Encoded from 1 s after T to 2 s, denoised to 4 s, decoded to 5 s, written to 6 s."""
    stored = StoredImage(asset_id=f"a-{image}", seed=5 + image, width=128, height=128, format="png", bytes=9)
    return Generated(
        image=stored,
        started_at=T + 2,
        encode_s=1,
        denoise_s=2,
        decode_s=1,
        file_s=1,
        spans={
            "encode": Span(T + 1, T + 2),
            "denoise": Span(T + 2, T + 4),
            "decode": Span(T + 4, T + 5),
            "file": Span(T + 5, T + 6),
        },
    )


def finished(submission: Submission, *answers: Generated) -> Job:
    job = Job(submission, created_at=T)
    job.begin(T + 2)
    job.finished = dict(enumerate(answers))
    job.close(Succeeded, images=tuple(answer.image for answer in answers), timings=job.timings())
    return job


def line(job: Job, data: Path, **settings: Any) -> dict[str, Any]:
    with capture_logs() as lines:
        Endings(Settings(data=data, **settings)).ended(job)
    (line,) = lines
    return dict(line)


def traced(**changes: Any) -> Submission:
    return replace(order(n=2), request_id="r1", traceparent=f"00-{TRACE}-{SPAN}-01", **changes)


def test_one_line_says_what_was_asked_how_long_it_took_and_which_request_it_was(tmp_path: Path) -> None:
    job = finished(traced(), drawn(0), drawn(1))
    said = line(job, tmp_path)
    assert said["event"] == "job ended"
    assert {"job_id": job.id, "request_id": "r1", "trace_id": TRACE}.items() <= said.items()
    assert {"status": "succeeded", "priority": "interactive", "cache": "miss", "attempt": 1}.items() <= said.items()
    assert {"width": 128, "height": 128, "steps": 8, "n": 2, "images": 2}.items() <= said.items()
    assert {"queue_ms": 2000, "encode_ms": 1000, "denoise_ms": 4000, "decode_ms": 2000, "file_ms": 2000}.items() <= (
        said.items()
    )
    assert said["total_ms"] > 0


def test_users_have_pseudonyms_that_differ_between_services(tmp_path: Path) -> None:
    one, other = (line(finished(traced(user="ada"), drawn()), tmp_path / name)["user"] for name in "ab")
    assert one != other
    assert "ada" not in one + other
    assert Pseudonyms.of(Settings(data=tmp_path / "a"))("ada") == one


def test_prompts_are_said_only_where_the_settings_ask_for_it(tmp_path: Path) -> None:
    job = finished(order(), drawn())
    assert "a cat" not in str(line(job, tmp_path))
    assert line(job, tmp_path, log_prompts=True)["prompt"] == "a cat"


def test_a_failed_job_says_why(tmp_path: Path) -> None:
    job = Job(order())
    job.close(Failed, error=ErrorInfo(status=500, code="out_of_memory", type="server_error", message="the secret"))
    said = line(job, tmp_path)
    assert (said["status"], said["error"], said["images"]) == ("failed", "out_of_memory", 0)
    assert "secret" not in str(said)


async def test_every_end_has_its_line_those_from_the_cache_too(tmp_path: Path) -> None:
    replicas = Drawing(tmp_path)
    jobs = dispatcher_over(replicas, tmp_path)
    await jobs.open()
    with capture_logs() as lines:
        beat(jobs, engine="e")
        canceled = await submitted(jobs)
        await jobs.cancel(canceled)
        await last(jobs, canceled)
        drawn_id = await submitted(jobs, seeded=True)
        (task_id,) = await replicas.held_when(1)
        await replicas.finish(task_id)
        await last(jobs, drawn_id)
        hit = await submitted(jobs, seeded=True)
    await jobs.close()
    ended = [(line["job_id"], line["status"], line["cache"]) for line in lines if line["event"] == "job ended"]
    assert ended == [(canceled, "canceled", "miss"), (drawn_id, "succeeded", "miss"), (hit, "succeeded", "hit")]


def test_what_was_measured_becomes_spans_of_the_client_s_trace(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    job = finished(traced(), drawn(0), drawn(1))
    line(job, tmp_path)
    *parts, root = exporter.get_finished_spans()
    assert root.name == "image job"
    assert {span.context.trace_id for span in (*parts, root)} == {int(TRACE, 16)}
    assert root.parent is not None
    assert (root.parent.span_id, root.parent.is_remote) == (int(SPAN, 16), True)
    assert {span.parent and span.parent.span_id for span in parts} == {root.context.span_id}
    once = [("denoise", 2, 4), ("decode", 4, 5), ("file", 5, 6)]
    assert [_when(span) for span in parts] == [("queue", 0, 2), ("encode", 1, 2), *once, *once]
    assert root.start_time == T * 1e9
    assert root.attributes is not None
    assert {"zimage.job_id": job.id, "zimage.request_id": "r1", "zimage.n": 2}.items() <= root.attributes.items()
    assert root.status.is_unset


def test_a_job_without_a_client_s_trace_is_found_by_its_id(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    job = finished(order(), drawn())
    said = line(job, tmp_path)
    spans = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {said["trace_id"]}
    assert spans[-1].parent is None


def test_what_the_client_does_not_sample_has_no_spans(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    line(finished(replace(order(), traceparent=f"00-{TRACE}-{SPAN}-00"), drawn()), tmp_path)
    assert exporter.get_finished_spans() == ()


def test_a_remembered_prompt_has_no_span_of_its_encoding(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    answer = drawn()
    spans = {stage: span for stage, span in answer.spans.items() if stage != "encode"}
    line(finished(order(), replace(answer, spans=spans)), tmp_path)
    assert "encode" not in [span.name for span in exporter.get_finished_spans()]


def test_one_that_never_began_was_in_the_queue_all_the_time(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    job = Job(order())
    job.close(Canceled)
    line(job, tmp_path)
    queue, root = exporter.get_finished_spans()
    assert (queue.name, queue.start_time, queue.end_time) == ("queue", root.start_time, root.end_time)
    assert root.status.is_unset


def test_a_failure_is_an_error_of_the_trace(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    job = Job(order())
    job.close(Failed, error=ErrorInfo(status=500, code="out_of_memory", type="server_error", message="m"))
    line(job, tmp_path)
    assert exporter.get_finished_spans()[-1].status.description == "out_of_memory"


def test_without_the_extra_a_wish_for_traces_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "EXPORTER", "opentelemetry.exporter.no_such.thing")
    tracing.check_tracing(Settings())
    with pytest.raises(ConfigError) as caught:
        tracing.check_tracing(Settings(tracing={"endpoint": "http://localhost:4318"}))
    assert "zimage-serve[tracing]" in str(caught.value.hint)


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    code = """if True:
        import sys
        import serve.jobs.dispatcher
        from serve.settings import Settings
        from serve.tracing.open import open_traces
        open_traces(Settings()).close()
        sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def _when(span: ReadableSpan) -> tuple[str, float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.name, span.start_time / 1e9 - T, span.end_time / 1e9 - T
