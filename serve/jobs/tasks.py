"""Tasks of the Dispatcher's own: in Ray Serve a call made in a request's context is cancelled with that request."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from serve.errors import StaleWriter, ZImageError

log = structlog.get_logger()
T = TypeVar("T")


class Tasks:
    """`on_stale` is called when one of them finds that another Dispatcher has taken over."""

    def __init__(self, on_stale: Callable[[StaleWriter], None]) -> None:
        self._on_stale = on_stale
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._reap)
        return task

    async def close(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, StaleWriter):
            self._on_stale(error)
        elif not isinstance(error, ZImageError):
            log.error("a task of the dispatcher failed", exc_info=error)
