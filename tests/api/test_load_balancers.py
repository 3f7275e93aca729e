"""nginx and HAProxy, as shipped, in front of two Gateways: what passes, and what is never sent twice."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from serve.api.app import create_app
from tests.api.balancers import PATH, Balancer, Node, balancer, haproxy_config, nginx_config

KINDS = pytest.mark.parametrize("kind", ["nginx", "haproxy"])
JOB = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 12, "seed": 1}
Serving = Callable[[Any], AbstractAsyncContextManager[str]]


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(service: Any, settings: Any, serving: Serving) -> AsyncIterator[list[tuple[Node, str]]]:
    async with AsyncExitStack() as stack:
        pair = [Node(create_app(service, service.assets, service.prompts, settings)) for _ in range(2)]
        yield [(node, await stack.enter_async_context(serving(node))) for node in pair]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def in_front(kind: str, tmp_path: Path, *urls: str) -> AsyncIterator[tuple[Balancer, httpx.AsyncClient]]:
    async with (
        balancer(kind, tmp_path, *urls) as front,
        httpx.AsyncClient(base_url=front.url, timeout=60) as client,
    ):
        yield front, client


@KINDS
async def test_jobs_events_and_readiness_pass(kind: str, nodes: list[tuple[Node, str]], tmp_path: Path) -> None:
    async with in_front(kind, tmp_path, *(url for _, url in nodes)) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        job = (await client.post("/v1/jobs", json=JOB, headers={"X-Request-Timeout-Seconds": "0.001"})).json()
        async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            names = [line async for line in stream.aiter_lines() if line.startswith("event:")]
        assert names[-1].endswith("succeeded")
        assert len({str(node.headers) for node, _ in nodes}) == 2, "both are used"
    told = [headers for node, _ in nodes for headers in node.headers]
    assert not any("x-request-timeout-seconds" in headers for headers in told)
    assert all(headers["host"].startswith("127.0.0.1:") and headers["x-forwarded-for"] for headers in told)


@KINDS
async def test_events_are_not_held_back(kind: str, serving: Serving, tmp_path: Path) -> None:
    """Each event is read before the next one is even made."""
    read = [asyncio.Event() for _ in range(3)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number, event in enumerate(read if scope["path"] == "/events" else []):
            await send({"type": "http.response.body", "body": f"data: {number}\n\n".encode(), "more_body": True})
            await asyncio.wait_for(event.wait(), 10)
        await send({"type": "http.response.body", "body": b""})

    async with (
        serving(app) as url,
        in_front(kind, tmp_path, url) as (_, client),
        client.stream("GET", "/events") as stream,
    ):
        lines = [line async for line in _acknowledged(stream.aiter_lines(), read)]
    assert lines == ["data: 0", "data: 1", "data: 2"]


async def _acknowledged(lines: AsyncIterator[str], read: list[asyncio.Event]) -> AsyncIterator[str]:
    waiting = iter(read)
    async for line in lines:
        if line:
            next(waiting).set()
            yield line


@KINDS
async def test_websockets_pass(kind: str, nodes: list[tuple[Node, str]], tmp_path: Path) -> None:
    async with in_front(kind, tmp_path, *(url for _, url in nodes)) as (front, client):
        job = (await client.post("/v1/jobs", json=JOB)).json()
        async with connect(f"{front.url.replace('http', 'ws')}/v1/ws") as socket_:
            await socket_.send(json.dumps({"type": "subscribe", "jobs": [job["id"]]}))
            async with asyncio.timeout(30):
                async for message in socket_:
                    if "succeeded" in str(message):
                        break


@KINDS
async def test_connections_to_the_nodes_are_kept(kind: str, nodes: list[tuple[Node, str]], tmp_path: Path) -> None:
    (node, url), _ = nodes
    async with in_front(kind, tmp_path, url) as (_, client):
        for _ in range(20):
            assert (await client.get("/v1/models")).status_code == 200
    assert node.seen["GET /v1/models"] == 20
    assert len(node.clients) <= 2


@KINDS
async def test_a_node_that_cannot_be_reached_costs_no_call(
    kind: str, nodes: list[tuple[Node, str]], tmp_path: Path
) -> None:
    (node, url), _ = nodes
    async with in_front(kind, tmp_path, free_address(), url) as (_, client):
        answers = [await client.post("/v1/jobs", json=JOB) for _ in range(10)]
    assert [answer.status_code for answer in answers] == [202] * 10
    assert node.seen["POST /v1/jobs"] == 10
    assert len({answer.json()["id"] for answer in answers}) == 10


@asynccontextmanager
async def dying(posts: list[bytes]) -> AsyncIterator[str]:
    """A node that takes a call, and is gone before it answers."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /-/healthz"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        else:
            posts.append(head.split(b"\r\n")[0])
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@KINDS
async def test_a_call_that_was_sent_is_never_sent_again(kind: str, tmp_path: Path) -> None:
    one: list[bytes] = []
    two: list[bytes] = []
    async with dying(one) as first, dying(two) as second, in_front(kind, tmp_path, first, second) as (_, client):
        answer = await client.post("/v1/jobs", json=JOB)
    assert answer.status_code == 502
    assert one + two == [b"POST /v1/jobs HTTP/1.1"]


@KINDS
async def test_its_user_may_send_it_again_under_its_key(
    kind: str, nodes: list[tuple[Node, str]], tmp_path: Path
) -> None:
    key = {"Idempotency-Key": "the-same-one"}
    async with in_front(kind, tmp_path, *(url for _, url in nodes)) as (_, client):
        ids = {(await client.post("/v1/jobs", json=JOB, headers=key)).json()["id"] for _ in range(4)}
    assert len(ids) == 1
    assert sum(node.seen["POST /v1/jobs"] for node, _ in nodes) == 4


async def test_haproxy_leaves_a_node_that_drains_and_comes_back(nodes: list[tuple[Node, str]], tmp_path: Path) -> None:
    (one, first), (two, second) = nodes
    async with in_front("haproxy", tmp_path, first, second) as (front, client):
        one.draining = True
        await _until(front, "node1", "DOWN")
        before = one.seen.copy()
        for _ in range(10):
            assert (await client.get("/v1/models")).status_code == 200
        assert one.seen == before
        one.draining = False
        await _until(front, "node1", "UP")
        assert await front.command("set server zimage/node2 state drain") == ""
        before = two.seen.copy()
        for _ in range(10):
            assert (await client.get("/v1/models")).status_code == 200
        assert two.seen == before


async def test_haproxy_drains_without_cutting_what_runs(nodes: list[tuple[Node, str]], tmp_path: Path) -> None:
    (_, first), _ = nodes
    async with in_front("haproxy", tmp_path, first) as (front, client):
        call = asyncio.create_task(client.post("/v1/images/generations", json=JOB | {"num_inference_steps": 40}))
        await asyncio.sleep(0.2)
        await front.command("set server zimage/node1 state drain")
        assert (await call).status_code == 200


async def _until(front: Balancer, node: str, state: str) -> None:
    async with asyncio.timeout(15):
        while True:
            rows = await front.servers()
            if next(row for row in rows if row["svname"] == node)["status"].startswith(state):
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(("kind", "make"), [("nginx", nginx_config), ("haproxy", haproxy_config)])
def test_the_files_are_taken_without_a_warning(kind: str, make: Callable[..., str], tmp_path: Path) -> None:
    program = shutil.which(kind, path=PATH)
    if program is None:
        pytest.skip(f"there is no {kind} here: make test-deps")
    file = tmp_path / "conf"
    file.write_text(make(tmp_path, 8080, ["127.0.0.1:8000", "127.0.0.1:8001"]) + "\n")
    options = ["-t", "-c", str(file), "-p", str(tmp_path)] if kind == "nginx" else ["-c", "-V", "-f", str(file)]
    done = subprocess.run([program, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower()
