"""A real HTTP server that takes webhooks, and answers as the test says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Got:
    """One POST as it came in."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers with `answers` one after the other, then with 204; each waits for `go`."""

    answers: list[Callable[[], Response]] = field(default_factory=list)
    got: list[Got] = field(default_factory=list)
    port: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0

    async def take(self, request: Request) -> Response:
        self.got.append(Got(str(request.url.path), dict(request.headers), await request.body()))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.go.wait()
        finally:
            self.at_once -= 1
        return self.answers.pop(0)() if self.answers else Response(status_code=204)

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def until(self, count: int, within_s: float = 20) -> list[Got]:
        async with asyncio.timeout(within_s):
            while len(self.got) < count:
                await asyncio.sleep(0.005)
        return self.got


@asynccontextmanager
async def receiving(receiver: Receiver | None = None, **tls: Any) -> AsyncIterator[Receiver]:
    receiver = receiver or Receiver()
    receiver.go.set()
    app = Starlette(routes=[Route("/{path:path}", receiver.take, methods=["POST", "GET"])])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        receiver.port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", **tls))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield receiver
        finally:
            receiver.go.set()
            server.should_exit = True
            await serving
