"""What Ray Serve's HTTP proxy does beside its work: it does not wait for ever for the head of a request.

Ray Serve calls `configure` in every proxy, where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it before Ray
starts. uvicorn, which reads the heads there, has no such time-out: docs/adr/0026-heads-have-a-time-out.md.
"""

from __future__ import annotations

import asyncio

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 30.0


class Impatient(HttpToolsProtocol):
    """Closes a connection that says nothing from its first moment on, or begins a head and does not end it.

    Between two requests uvicorn's own `timeout_keep_alive` rules; bodies, which may be long, are the Gateway's affair.
    """

    head_s = HEAD_S
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._alarm is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._alarm = self.loop.call_later(self.head_s, self._give_up)

    def _forget_head(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _give_up(self) -> None:
        """A request that was sent too early, behind one that is still being answered, may take its time."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self._expect_head()


def configure() -> list[Middleware]:
    """Before the proxy makes its server. No middleware: connections that never become a request reach none."""
    auto.AutoHTTPProtocol = Impatient
    return []
