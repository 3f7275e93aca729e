"""Server-sent events: a stream that ends its source when the client leaves, and does not go quiet for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.disconnect import unless_gone


class EventStream(Response):
    """Starlette's StreamingResponse, by the server's version, notices a client that left only when it next sends."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self._chunks = chunks
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send, scope["state"].get("bodyless", False)))
        except ClientDisconnect:
            return
        finally:
            await self._chunks.aclose()

    async def _send(self, send: Send, bodyless: bool) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if bodyless:
            await send({"type": "http.response.body", "body": b""})
            return
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def with_pings(chunks: AsyncGenerator[bytes, None], every_s: float) -> AsyncGenerator[bytes, None]:
    """A comment after each silence: proxies cut connections on which nothing is said."""
    following: asyncio.Task[bytes] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(chunks))
            await asyncio.wait({following}, timeout=every_s)
            if following.done():
                chunk, following = following.result(), None
                yield chunk
            else:
                yield b": ping\n\n"
    except StopAsyncIteration:
        return
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait({following})
        await chunks.aclose()
