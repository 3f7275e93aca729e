"""Every answer counted by route and status, and timed to its last byte."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.metrics.tally import Recorder

NO_ROUTE = "none"  # lest paths that do not exist become series without end


class Measured:
    """Plain ASGI, outermost: what it sees is what the client gets. WebSockets count when they close, as 101."""

    def __init__(self, app: ASGIApp, recorder: Recorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = "499" if scope["type"] == "http" else "101"  # nginx's word for a client that left before the answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            self._recorder.count("zimage_http_requests_total", route, status)
            self._recorder.observe("zimage_http_request_duration_seconds", time.perf_counter() - started, route)
