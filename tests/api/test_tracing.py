"""A job's spans as a collector gets them: over HTTP, in OpenTelemetry's protobuf."""

import asyncio
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serve.api.app import create_app
from serve.local import open_service
from serve.settings import Settings

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.got: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> dict[str, Span]:
        return {
            span.name: span
            for request in self.got
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def service_name(self) -> str:
        (attribute,) = [a for a in self.got[0].resource_spans[0].resource.attributes if a.key == "service.name"]
        return attribute.value.string_value


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.paths.add(self.path)
        self.server.got.append(ExportTraceServiceRequest.FromString(body))
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


async def draw(settings: Settings, body: dict[str, object], headers: dict[str, str]) -> httpx.Response:
    """By a service of its own, which has ended when this returns."""
    async with open_service(settings) as service:
        app = create_app(service, service.assets, service.prompts, settings)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client:
            return await client.post("/v1/images/generations", json=body, headers=headers)


async def test_a_job_s_spans_join_the_client_s_trace(collector, tmp_path, fox):
    tracing = {"endpoint": collector.url, "service_name": "pictures"}
    settings = Settings(data=tmp_path, warmup_sizes_px=(128,), tracing=tracing)
    answer = await draw(settings, fox, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert answer.status_code == 200
    assert collector.paths == {"/v1/traces"}
    assert collector.service_name() == "pictures"
    spans = collector.spans
    assert spans.keys() == {"image job", "queue", "encode", "denoise", "decode", "file"}
    root = spans.pop("image job")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert {(span.trace_id, span.parent_span_id) for span in spans.values()} == {(root.trace_id, root.span_id)}
    attributes = {attribute.key: attribute.value for attribute in root.attributes}
    assert attributes["zimage.job_id"].string_value == answer.headers["X-Job-Id"]
    assert fox["prompt"] not in str(collector.got)
    _check_times(root, spans)


def _check_times(root: Span, parts: dict[str, Span]) -> None:
    """One after the other, within the job; only the encoding is within the wait for the first step."""
    for span in parts.values():
        assert root.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    for one, following in (("queue", "denoise"), ("encode", "denoise"), ("denoise", "decode"), ("decode", "file")):
        assert parts[one].end_time_unix_nano <= parts[following].start_time_unix_nano


async def test_a_collector_that_is_gone_disturbs_nobody(tmp_path, fox):
    gone = Collector()
    gone.server_close()
    settings = Settings(data=tmp_path, warmup_sizes_px=(128,), tracing={"endpoint": gone.url})
    async with asyncio.timeout(60):
        assert (await draw(settings, fox, {})).status_code == 200
