"""Connections on which nothing comes, or half a head, are closed; slow bodies and slow answers are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import auto

from deployments.proxy import Impatient, configure

HEAD_S = 0.4
WHOLE = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
GENEROUS_S = 20


class Hasty(Impatient):
    head_s = HEAD_S


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server that answers `/` at once, `/slow` after twice the time that a head may take, and reads bodies."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await asyncio.sleep(2 * HEAD_S)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", http=Hasty, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def said(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """All that the server says until it closes the connection; it is given up as open after a generous time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    for part in parts:
        if not reading.done():
            writer.write(part)
            await asyncio.sleep(pause_s)
    try:
        async with asyncio.timeout(GENEROUS_S):
            return await reading
    except ConnectionError:  # closed while a part was on its way
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("begun", [b"", b"GE", b"POST / HTTP/1.1\r\nHost: half"])
async def test_a_head_that_never_ends_closes_the_connection(port: int, begun: bytes) -> None:
    assert await said(port, begun) == b""


async def test_a_head_in_drops_is_as_late_as_none(port: int) -> None:
    """Time runs from its beginning, not from the last byte."""
    drops = [b"GET / HTTP/1.1\r\nName: "] + [b"a"] * 12
    assert await said(port, *drops, pause_s=HEAD_S / 4) == b""


async def test_the_second_request_of_a_connection_has_the_same_time(port: int) -> None:
    answered = await said(port, WHOLE, b"GET / HT")
    assert answered.startswith(b"HTTP/1.1 200 OK")
    assert answered.endswith(b"ok")


async def test_a_slow_body_is_read_and_a_slow_answer_is_sent(port: int) -> None:
    head = b"POST /slow HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 3\r\n\r\n"
    answered = await said(port, head, b"a", b"b", b"c", pause_s=HEAD_S / 2)
    assert answered.startswith(b"HTTP/1.1 200 OK")
    assert answered.endswith(b"ok")


async def test_half_a_request_behind_one_that_is_answered_does_not_cut_the_answer(port: int) -> None:
    first = b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n"
    answered = await said(port, first + b"GET / HT")
    assert answered.startswith(b"HTTP/1.1 200 OK")
    assert answered.endswith(b"ok")


async def test_an_idle_connection_between_two_requests_is_kept(port: int) -> None:
    """That is `timeout_keep_alive`, here a minute."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(WHOLE)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK")
        await asyncio.sleep(2 * HEAD_S)
    assert not reader.at_eof()
    writer.close()


def test_ray_serves_proxy_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the choice to uvicorn, which looks there."""
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    assert configure() == []
    config = uvicorn.Config(lambda: None, factory=True)
    config.load()
    assert config.http_protocol_class is Impatient
