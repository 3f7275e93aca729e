"""Around every route: a request id on every answer, HEAD for every GET, and an answer when a route fails."""

from __future__ import annotations

import re

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from serve.api.errors import error_response
from serve.traceparent import parent_of

_REQUEST_ID = re.compile("[!-~]{1,128}")


class Envelope:
    """Plain ASGI, so streams pass through unbuffered.

    `echo` is off where the server in front puts the request's X-Request-ID on the answer, as Ray Serve's does.
    """

    def __init__(self, app: ASGIApp, echo: bool = True) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        parent = parent_of(headers.get("traceparent"))
        scope.setdefault("state", {}).update(request_id=request_id, traceparent=str(parent) if parent else None)
        traced = {"trace_id": parent.trace_id} if parent else {}
        with structlog.contextvars.bound_contextvars(request_id=request_id, **traced):
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
                return
            sender = _Sender(send, scope, request_id if self._echo else None)
            await self._call(_as_get(scope) if sender.bodyless else scope, receive, sender)

    async def _call(self, scope: Scope, receive: Receive, sender: _Sender) -> None:
        try:
            await self._app(scope, receive, sender.send)
        except ClientDisconnect:
            return
        except Exception as error:
            if sender.started:
                raise  # the server then breaks the body off, so that nobody takes it for whole
            await error_response(Request(scope), error)(scope, receive, sender.send)


class _Sender:
    def __init__(self, send: Send, scope: Scope, request_id: str | None) -> None:
        self._send = send
        self._scope = scope
        self._request_id = request_id
        self.bodyless = scope["method"] == "HEAD"
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self.bodyless:
                self._scope["method"] = "HEAD"  # the server would wait for the body that is announced
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            if self._request_id is not None:
                headers["X-Request-ID"] = self._request_id
        elif self.bodyless and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


def _request_id(sent: str | None) -> str:
    return sent if sent is not None and _REQUEST_ID.fullmatch(sent) else str(ULID())


def _as_get(scope: Scope) -> Scope:
    """Range has no meaning for HEAD (RFC 9110, 14.2); a stream is told, lest it runs for nobody."""
    scope["method"] = "GET"
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
    scope["state"]["bodyless"] = True
    return scope
