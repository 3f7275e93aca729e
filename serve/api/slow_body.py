"""A request's body has a time limit: who sends a byte a minute would hold a connection and a handler for ever."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import BodyTooSlow


class BodyDeadline:
    """Plain ASGI. Raises BodyTooSlow out of `receive`, where the route waits for its body."""

    def __init__(self, app: ASGIApp, body_s: float) -> None:
        self._app = app
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._body_s
        complete = False

        async def receive_in_time() -> Message:
            nonlocal complete
            if complete:  # what comes now is the client's leaving, in its own time
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(
                    f"the body did not arrive within {self._body_s:g} s", hint="send it faster, or send less"
                ) from None
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)
