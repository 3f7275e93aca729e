"""Clients that come in thousands, say half a sentence, read a byte a second: others do not notice."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from deployments.proxy import HEAD_S
from tests.chaos.conftest import ROUNDS, Service
from tests.chaos.crowd import drawn
from tests.chaos.faults import half_open

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]

BYTES_EACH = 30_000  # five times what one costs uvicorn
BIG = {"prompt": "a cat", "size": "256x256", "n": 6, "num_inference_steps": 1, "seed": 3, "cache": "auto"}


@pytest.fixture(scope="module")
def descriptors() -> Iterator[int]:
    """How many connections this process may hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard - 2000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def connections(descriptors: int) -> int:
    """Ten thousand at night; the service's processes may hold as many as we."""
    return min(descriptors, int(os.environ.get("CHAOS_CONNECTIONS", "1000" if ROUNDS == 1 else "10000")))


async def test_half_open_connections_keep_nobody_out(
    service: Service, dice: random.Random, connections: int, round: int
) -> None:
    with half_open(service.url, connections) as sockets:
        await drawn(service.url)
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            answers = await asyncio.gather(*(client.get("/healthz") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        for index in dice.sample(range(connections), connections // 10):
            sockets[index].close()
        await drawn(service.url)
    await drawn(service.url)


@pytest.mark.nightly
async def test_half_open_connections_cost_little_and_are_closed_in_time(
    service: Service, connections: int, round: int
) -> None:
    (proxy,) = service.server.processes("ray::ProxyActor")
    before = proxy.memory_info().rss
    with half_open(service.url, connections) as sockets:
        await drawn(service.url)
        assert proxy.memory_info().rss - before < connections * BYTES_EACH
        async with asyncio.timeout(4 * HEAD_S):
            while not all(closed(connection) for connection in sockets):
                await asyncio.sleep(1)
    assert proxy.num_fds() < connections // 2
    await drawn(service.url)


def closed(connection: socket.socket) -> bool:
    """By the other side."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def test_clients_that_read_a_byte_a_second_slow_nobody_down(
    service: Service, dice: random.Random, round: int
) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
        whole = (await client.post("/v1/images/generations", json=BIG)).content
    with trickling(service.url, 20) as sockets:
        for _ in range(3):
            for connection in sockets:
                connection.recv(1)
            await drawn(service.url)
            await asyncio.sleep(dice.random())
        rest = await asyncio.to_thread(read_all, sockets[0])
    assert len(rest) > len(whole) - 100  # it is all there, at whatever pace it is fetched


@contextmanager
def trickling(url: str, count: int) -> Iterator[list[socket.socket]]:
    """They have asked for an answer of half a megabyte, have little room for it, and take their time."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = httpx.Request("POST", url, json=BIG).content
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    sockets = []
    try:
        for _ in range(count):
            connection = socket.socket()
            sockets.append(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect((host, int(port)))
            connection.sendall(head.encode() + body)
        yield sockets
    finally:
        for connection in sockets:
            connection.close()


def read_all(connection: socket.socket) -> bytes:
    """Until nothing has come for a second: the connection stays open."""
    connection.settimeout(1.0)
    data, began = bytearray(), time.monotonic()
    try:
        while time.monotonic() - began < 60 and (chunk := connection.recv(65536)):
            data += chunk
    except TimeoutError:
        pass
    return bytes(data)
