"""Every answer counted by route and status, timed to its last byte, and told to the log."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.access_log import AccessLog
from serve.metrics.tally import Recorder

NO_ROUTE = "none"  # lest paths that do not exist become series without end


class Measured:
    """Plain ASGI, outermost: what it sees is what the client gets. WebSockets count when they close, as 101."""

    def __init__(self, app: ASGIApp, recorder: Recorder, access_log: AccessLog) -> None:
        self._app = app
        self._recorder = recorder
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope)

        async def watched(message: Message) -> None:
            """Counted before its last byte leaves: whoever has the whole answer finds it in the metrics."""
            if message["type"] == "http.response.start":
                answer.status = str(message["status"])
                answer.job_id = Headers(raw=message["headers"]).get("x-job-id")
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                self._count(answer)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._count(answer)

    def _count(self, answer: _Answer) -> None:
        if answer.counted:
            return
        answer.counted = True
        seconds = time.perf_counter() - answer.began
        self._recorder.count("zimage_http_requests_total", answer.route, answer.status)
        self._recorder.observe("zimage_http_request_duration_seconds", seconds, answer.route)
        self._access_log.answered(answer.scope, answer.method, answer.route, answer.status, seconds, answer.job_id)


class _Answer:
    def __init__(self, scope: Scope) -> None:
        self.began = time.perf_counter()
        self.scope = scope
        self.method = scope.get("method", "WEBSOCKET")
        self.status = "499" if scope["type"] == "http" else "101"  # nginx's word for a client that left before
        self.job_id: str | None = None
        self.counted = False

    @property
    def route(self) -> str:
        return getattr(self.scope.get("route"), "path", NO_ROUTE)
