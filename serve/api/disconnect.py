"""A client that leaves stops its work. Ray Serve then cancels the handler; other servers only tell `receive`."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")

_detached: set[asyncio.Task[Any]] = set()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; cancels it and raises ClientDisconnect when the client leaves first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def detach(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Runs to its end whoever leaves: Ray Serve cancels every handle call made in a request's context, shielded or not,
    so `work` gets a context of its own."""
    task = asyncio.create_task(work, context=contextvars.Context())
    _detached.add(task)
    task.add_done_callback(_detached.discard)
    return task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
