"""What is scraped from a real run, and what its dashboard and its alerts make of that: two Gateways, one Prometheus."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image
from ulid import ULID

from tests.cluster.prometheus import PROGRAM, Prometheus
from tests.cluster.server import ROOT, Server
from tests.ports import free_port

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(PROGRAM is None, reason="there is no prometheus: apt-get install prometheus"),
]

URL = "/v1/images/generations"
# Without samples on a CPU: there is no device that could say something.
NO_GPU = ("zimage_vram_", "nv_gpu_")
# Answers that this run does not have: the selector of an alert about the service's own errors.
NEVER = 'zimage_http_requests_total{status=~"500|502|504"}'
COUNTERS = '{__name__=~"zimage_.*_(total|count|sum|bucket)|nv_inference_(request|count|exec|compute|queue).*"}'
OF_THE_MOMENT = ("zimage_uptime_seconds", "zimage_store_free_bytes", "zimage_http_")


@dataclass(frozen=True)
class Run:
    server: Server
    prometheus: Prometheus

    def ask(self, method: str, path: str, request_id: str | None = None, **how: Any) -> httpx.Response:
        """On a connection of its own, which the proxy gives to either Gateway."""
        headers = how.pop("headers", {}) | ({"X-Request-ID": request_id} if request_id else {})
        return httpx.request(method, f"{self.server.url}{path}", headers=headers, timeout=120, **how)

    def draw(self, **wish: Any) -> httpx.Response:
        return self.ask("POST", URL, json={"prompt": f"a cat {ULID()}", "size": "64x64", **wish})

    def lines(self) -> list[dict[str, Any]]:
        """What all processes have said, from Ray's collected output."""
        said = []
        for line in self.server.log.read_text().splitlines():
            _, brace, rest = line.partition("{")
            if brace and rest.endswith("}"):
                said.append(json.loads(brace + rest))
        return said

    def line(self, **wanted: Any) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [line for line in self.lines() if wanted.items() <= line.items()]
            return bool(found)

        self.server.wait_until(there, 20, f"a line with {wanted}")
        return found[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    data, ray = tmp_path_factory.mktemp("metrics"), free_port()
    server = Server.start(data, _two_gateways(data), "--ray-metrics-port", str(ray))
    try:
        service = server.url.removeprefix("http://")
        prometheus = Prometheus.start(data / "prometheus", service, f"127.0.0.1:{ray}")
        try:
            run = Run(server, prometheus)
            _busy(run)
            yield run
        finally:
            prometheus.stop()
    finally:
        server.stop()


def _two_gateways(data: Path) -> Path:
    config = yaml.safe_load((ROOT / "config" / "serve.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= {"log_format": "json", "queue": {"max_depth": 4}}
    next(d for d in application["deployments"] if d["name"] == "Gateway")["num_replicas"] = 2
    (data / "serve.yaml").write_text(yaml.safe_dump(config))
    return data / "serve.yaml"


def _busy(run: Run) -> None:
    """Some of everything, twice: rates need a series that is there and grows."""
    server, prometheus = run.server, run.prometheus
    server.wait_until(lambda: bool(prometheus.now("zimage_ready == 1")), 30, "the service is scraped")
    lines = io.BytesIO()
    Image.new("RGB", (64, 64)).save(lines, "PNG")
    drawn_along = {"controlnet": "lines", "control_image": base64.b64encode(lines.getvalue()).decode()}
    for _ in range(2):
        again = {"prompt": f"a cat {ULID()}", "seed": 7}
        for wish in (
            {"n": 2},
            {"size": "128x128"},
            {"size": "256x128"},
            {"adapter": "blueprint"},
            drawn_along,
            again,
            again,
        ):
            assert run.draw(**wish).status_code == 200
        jobs = [run.ask("POST", "/v1/jobs", json={"prompt": f"a dog {ULID()}", "size": "256x256"}) for _ in range(20)]
        accepted = [job.json()["id"] for job in jobs if job.status_code == 202]
        refused = [job for job in jobs if job.status_code != 202]
        assert {job.json()["error"]["code"] for job in refused} == {"queue_full"}
        assert run.ask("POST", f"/v1/jobs/{accepted[-1]}/cancel").status_code in (200, 202)
        for job_id in accepted:
            assert run.ask("GET", f"/v1/jobs/{job_id}?wait=60").json()["status"] in ("succeeded", "canceled")
        time.sleep(2)  # at least one scrape between the two
    server.wait_until(lambda: bool(prometheus.now("ray_node_mem_used")), 60, "Ray is scraped")
    server.wait_until(lambda: bool(prometheus.now("ray_serve_deployment_replica_healthy")), 60, "Serve is scraped")


def test_every_panel_shows_what_the_run_had(run: Run) -> None:
    board = json.loads((ROOT / "ops" / "grafana" / "overview.json").read_text())
    empty = []
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "15s").replace("$__range", "5m")
            assert "$" not in query
            series = run.prometheus.now(query) if target.get("instant") else run.prometheus.since_its_start(query)
            if not any(value != "NaN" for one in series for value in _values(one)):
                empty.append(f"{panel['title']}: {query}")
    assert [query for query in empty if not any(name in query for name in NO_GPU)] == []
    assert len(empty) == sum(any(name in json.dumps(panel) for name in NO_GPU) for panel in board["panels"]) + 2


def test_every_alert_is_evaluated_on_series_that_are_there(run: Run) -> None:
    rules = run.prometheus.rules()
    written = yaml.safe_load((ROOT / "ops" / "alerts.yml").read_text())["groups"][0]["rules"]
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in written]
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
    for rule in rules:
        run.prometheus.now(rule["query"])
        for selector in re.findall(r"(?:zimage_\w+|\bup)(?:\{[^}]*\})?", rule["query"]):
            there = bool(run.prometheus.since_its_start(selector))
            assert there != (selector.startswith(NO_GPU) or selector == NEVER), selector


def test_no_value_goes_down(run: Run) -> None:
    names = [series["metric"]["__name__"] for series in run.prometheus.now(f"count by (__name__) ({COUNTERS})")]
    for name in names:
        (most,) = run.prometheus.now(f"max(resets({name}[10m]))")
        assert most["value"][1] == "0", name
    assert {"zimage_jobs_total", "zimage_http_request_duration_seconds_sum", "nv_inference_count"} <= set(names)


def test_a_read_after_an_answer_includes_it_whichever_gateway_answers_either(run: Run) -> None:
    """Which one it was is in the log, by the request's id; they are asked until all four pairs have come up."""
    again = {"prompt": f"a cat {ULID()}", "seed": 8, "size": "64x64"}
    run.draw(**again)
    before, pairs, asked = _scraped(run, str(ULID())), set(), 0
    answered = before[_ANSWERS]
    while len(pairs) < 4:
        assert asked < 200, pairs
        ids = [(str(ULID()), str(ULID())) for _ in range(10)]
        for drawn, read in ids:
            assert run.ask("POST", URL, drawn, json=again).headers["X-Cache"] == "hit"
            asked += 1
            seen = _scraped(run, read)
            assert seen["nv_inference_request_success"] == before["nv_inference_request_success"] + asked
            assert seen[_ANSWERS] == answered + asked
        pairs |= {(_process(run, drawn), _process(run, read)) for drawn, read in ids}


def test_both_gateways_tell_the_same(run: Run) -> None:
    told: dict[str, list[str]] = {}
    while len(told) < 2:
        request_id = str(ULID())
        text = run.ask("GET", "/metrics", request_id).text
        lines = [line for line in text.splitlines() if not any(name in line for name in OF_THE_MOMENT)]
        told[_process(run, request_id)] = lines
    one, other = told.values()
    assert one == other
    assert len(one) > 300


def test_the_lines_of_a_request_are_found_in_every_process(run: Run) -> None:
    request_id, trace_id = str(ULID()), "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    answer = run.ask("POST", URL, request_id, headers=headers, json={"prompt": "a very secret wish", "size": "64x64"})
    job_id = answer.headers["X-Job-Id"]
    asked = run.line(event="request", request_id=request_id)
    ended = run.line(event="job ended", job_id=job_id)
    assert (asked["route"], asked["status"], asked["job_id"], asked["trace_id"]) == (URL, 200, job_id, trace_id)
    assert (ended["request_id"], ended["trace_id"], ended["status"]) == (request_id, trace_id, "succeeded")
    assert asked["process"].startswith("Gateway/")
    assert ended["process"].startswith("Dispatcher/")
    assert asked["user"] == ended["user"]
    assert ended["denoise_ms"] > 0
    everything = run.server.log.read_text()
    assert "secret wish" not in everything
    assert "anonymous" not in everything


_ANSWERS = "zimage_http_requests_total of pictures"


def _scraped(run: Run, request_id: str) -> dict[str, float]:
    text = run.ask("GET", "/metrics", request_id).text
    (success,) = re.findall(r'^nv_inference_request_success\{model="z-image-turbo".*\} (.*)$', text, re.MULTILINE)
    (answers,) = re.findall(rf'^zimage_http_requests_total\{{route="{URL}",status="200"\}} (.*)$', text, re.MULTILINE)
    return {"nv_inference_request_success": float(success), _ANSWERS: float(answers)}


def _process(run: Run, request_id: str) -> str:
    return str(run.line(event="request", request_id=request_id)["process"])


def _values(series: dict[str, Any]) -> list[str]:
    pairs = series["values"] if "values" in series else [series["value"]]
    return [value for _, value in pairs]
