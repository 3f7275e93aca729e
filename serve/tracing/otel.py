"""Jobs as OpenTelemetry spans, made after the fact from what was measured. Needs the extra `tracing`."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, set_span_in_context

from serve.tracing.trace import JobTrace

ROOT = "image job"
TIMEOUT_S = 5


class OpenTelemetry:
    """Traces over one span processor. A client that does not sample its trace has no spans here, either."""

    def __init__(self, processor: SpanProcessor, service_name: str) -> None:
        self._ids = _Ids()
        resource = Resource.create({SERVICE_NAME: service_name})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("zimage-serve")

    def tell(self, trace: JobTrace) -> None:
        self._ids.trace_id = int(trace.trace_id, 16)
        began, ended = _ns(trace.span.began), _ns(trace.span.ended)
        root = self._tracer.start_span(ROOT, _context(trace), attributes=trace.attributes, start_time=began)
        inside = set_span_in_context(root, Context())
        for part in trace.parts:
            start = _ns(part.span.began)
            child = self._tracer.start_span(part.name, inside, attributes=part.attributes, start_time=start)
            child.end(_ns(part.span.ended))
        if trace.error is not None:
            root.set_status(Status(StatusCode.ERROR, trace.error))
        root.end(ended)

    def close(self) -> None:
        self._provider.shutdown()


def collector(endpoint: str, service_name: str) -> OpenTelemetry:
    """Sends by OTLP over HTTP to `endpoint`/v1/traces, in batches, from a thread of its own."""
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=TIMEOUT_S)
    return OpenTelemetry(BatchSpanProcessor(exporter), service_name)


class _Ids(RandomIdGenerator):
    """Traces are named by their jobs."""

    trace_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id


def _context(trace: JobTrace) -> Context:
    """Of the client's span, if it named one; never of whatever this process may be in."""
    if trace.parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if trace.parent.sampled else TraceFlags.DEFAULT)
    parent = SpanContext(
        int(trace.parent.trace_id, 16), int(trace.parent.span_id, 16), is_remote=True, trace_flags=flags
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
