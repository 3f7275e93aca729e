"""The line of each answer, and the lines of the job that it asked for."""

import asyncio

import pytest
from structlog.testing import capture_logs

from serve.api.access_log import AccessLog
from serve.pseudonym import Pseudonyms

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"X-Request-ID": "mine-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


def requests(lines) -> list[dict]:
    return [line for line in lines if line["event"] == "request"]


async def test_one_line_says_who_asked_for_what_and_how_it_ended(client, fox):
    with capture_logs() as lines:
        answer = await client.post("/v1/images/generations", json=fox, headers=HEADERS)
    (line,) = requests(lines)
    assert {"method": "POST", "route": "/v1/images/generations", "status": 200}.items() <= line.items()
    assert {"request_id": "mine-1", "trace_id": TRACE, "job_id": answer.headers["X-Job-Id"]}.items() <= line.items()
    assert line["seconds"] > 0
    assert len(line["user"]) == 16
    assert fox["prompt"] not in str(lines)
    assert "anonymous" not in str(lines)


async def test_the_job_says_which_request_it_came_from(client, fox):
    with capture_logs() as lines:
        job = await client.post("/v1/jobs", json=fox, headers=HEADERS | {"Prefer": "wait=60"})
    (ended,) = [line for line in lines if line["event"] == "job ended"]
    assert (ended["job_id"], ended["request_id"], ended["trace_id"]) == (job.json()["id"], "mine-1", TRACE)
    (request,) = requests(lines)
    assert ended["user"] == request["user"]
    assert min(ended[f"{stage}_ms"] for stage in ("denoise", "decode", "file", "total")) > 0


async def test_paths_are_told_as_routes(client):
    with capture_logs() as lines:
        await client.get("/v1/jobs/01M803SESFJX10AYZ80QS3R5S5?secret=1")
        await client.get("/no/such/secret")
    known, unknown = requests(lines)
    assert (known["route"], known["status"], known["job_id"]) == (
        "/v1/jobs/{job_id}",
        404,
        "01M803SESFJX10AYZ80QS3R5S5",
    )
    assert (unknown["route"], unknown["status"]) == ("none", 404)
    assert "secret" not in str(lines)


async def test_head_is_told_as_head(client):
    with capture_logs() as lines:
        await client.head("/v1/models")
    assert [line["method"] for line in requests(lines)] == ["HEAD"]


async def test_probes_that_succeed_are_not_told(client):
    with capture_logs() as lines:
        await client.get("/healthz")
        await client.get("/readyz")
        await client.get("/v2/health/ready")
        await client.get("/metrics")
    assert [line["route"] for line in requests(lines)] == ["/metrics"]


def test_a_probe_is_told_when_its_answer_changes():
    access_log, scope = AccessLog(Pseudonyms(b"")), {"type": "http"}
    with capture_logs() as lines:
        for status in ("503", "503", "200", "200", "503"):
            access_log.answered(scope, "GET", "/readyz", status, 0.001, None)
            access_log.answered(scope, "GET", "/healthz", "200", 0.001, None)
    assert [(line["route"], line["status"]) for line in requests(lines)] == [
        ("/readyz", 503),
        ("/readyz", 200),
        ("/readyz", 503),
    ]


@pytest.mark.parametrize("traceparent", ["nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01"])
async def test_a_traceparent_that_breaks_the_rules_is_not_told(client, traceparent):
    with capture_logs() as lines:
        await client.get("/v1/models", headers={"traceparent": traceparent})
    (line,) = requests(lines)
    assert "trace_id" not in line


async def test_a_client_that_leaves_is_told_too(client, fox):
    with capture_logs() as lines:
        body = fox | {"num_inference_steps": 50, "size": "256x256", "seed": 91}
        asking = asyncio.create_task(client.post("/v1/images/generations", json=body))
        await asyncio.sleep(0.5)
        asking.cancel()
        async with asyncio.timeout(30):
            while not requests(lines):
                await asyncio.sleep(0.05)
    assert requests(lines)[0]["status"] == 499
