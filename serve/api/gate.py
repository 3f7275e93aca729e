"""Before every route, also those that FastAPI and mounts add: who asks, and may they?"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any, cast

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from serve.access import quotas
from serve.access.authenticate import Authenticator
from serve.access.caller import NOBODY, Caller
from serve.access.roles import Right
from serve.access.sessions import CSRF_HEADER
from serve.api.errors import error_response
from serve.api.rights import right_of
from serve.errors import Forbidden, Unauthenticated, ZImageError
from serve.quota import Usage

LOOK_AGAIN_S = 2.0
POLICY_VIOLATION = 1008
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Gate:
    """Plain ASGI. Puts the caller into the connection's state, where `Door` finds it."""

    def __init__(
        self,
        app: ASGIApp,
        access: Authenticator,
        usage: Callable[[str], Awaitable[Usage]],
        metrics_token: str | None,
        exposed: bool,
    ) -> None:
        self._app = app
        self._access = access
        self._usage = usage
        self._metrics_token = metrics_token
        self._exposed = exposed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            right = right_of(scope)
            caller = scope["state"]["caller"] = await self._let_in(HTTPConnection(scope), right)
            counted = right is Right.DRAW and caller.quota is not None and caller.quota.limited
            await self._app(scope, receive, self._telling(caller, send) if counted else send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        try:
            caller = scope["state"]["caller"] = await self._let_in(websocket, right_of(scope))
        except ZImageError as error:
            if "websocket.http.response" in scope.get("extensions", {}):
                await error_response(cast(Request, websocket), error)(scope, receive, send)
            else:
                await websocket.close(POLICY_VIOLATION)  # which the server answers with 403
            return
        serving = asyncio.ensure_future(self._app(scope, receive, send))
        try:
            while not (await asyncio.wait({serving}, timeout=LOOK_AGAIN_S))[0]:
                if not await self._access.still_valid(caller):
                    await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "the key is revoked"})
                    return
            serving.result()
        finally:
            serving.cancel()

    async def _let_in(self, connection: HTTPConnection, right: Right | None) -> Caller:
        """Raises Unauthenticated, Forbidden, or Unavailable."""
        if right is Right.OPEN or (right is Right.LINK and "signature" in connection.query_params):
            return NOBODY
        if right is Right.METRICS and self._may_measure(connection):
            return NOBODY
        caller = await self._access.caller(connection)
        if caller.session is not None:
            self._check_page(connection, caller.session)
        self._check(connection, caller, right)
        return caller

    def _may_measure(self, connection: HTTPConnection) -> bool:
        if self._metrics_token is None:
            return not self._exposed
        sent = connection.headers.get("authorization", "")
        return hmac.compare_digest(sent.encode(), f"Bearer {self._metrics_token}".encode())

    def _check_page(self, connection: HTTPConnection, session: str) -> None:
        """A browser sends the cookie for any page: ours proves itself by its token, or for a socket by its origin."""
        if connection.scope["type"] == "websocket":
            origin = connection.headers.get("origin", "")
            if origin.partition("://")[2] != connection.headers.get("host"):
                raise Forbidden(f"a session's WebSocket is for pages of this host, not of {origin[:100]!r}")
        elif connection.scope["method"] not in SAFE_METHODS:
            token = self._access.sessions.csrf_token(session)
            if not hmac.compare_digest(connection.headers.get(CSRF_HEADER, "").encode(), token.encode()):
                raise Forbidden(
                    f"a session's writes need {CSRF_HEADER}", param=CSRF_HEADER, hint="GET /v1/me tells csrf_token"
                )

    def _check(self, connection: HTTPConnection, caller: Caller, right: Right | None) -> None:
        if right is None:
            right = Right.ADMIN if _exists(connection.scope) else Right.READ  # the route says 404 and 405 itself
        if right is Right.KEYS and caller.via == "open":
            raise Unauthenticated(
                "API keys are not handed out to somebody unknown",
                hint="make the first one with `zimage keys create NAME --role admin`",
                challenge=self._access.challenge,
            )
        if not caller.may(right):
            raise Forbidden(f"the role {caller.role} may not do this", hint=f"it takes the right {right.value!r}")

    def _telling(self, caller: Caller, send: Send) -> Send:
        """What is left of the quota is said with every answer, after the job was counted."""

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                assert caller.quota is not None
                windows = (await self._usage(caller.user)).windows(caller.quota)
                MutableHeaders(scope=message).update(quotas.headers(windows))
            await send(message)

        return tell


def _exists(scope: Scope) -> bool:
    routes: list[Any] = scope["app"].routes
    return any(route.matches(scope)[0] is Match.FULL for route in routes)
