"""Events on their way to one Gateway: one link for all its watchers, few messages, nothing lost when an answer is."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from serve.messages import Event, Preview, Terminal

Batch = tuple[int, list[Event]]
COALESCE_S = 0.25


class Outbox:
    """Events leave in batches; each `take` acknowledges what the one before it brought.

    Pictures and ends leave at once, and take along what happened before them; positions and progress wait up to a
    quarter of a second for company.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._acknowledged = 0
        self._due = 0  # the cursor up to which events may leave
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)
        if isinstance(event, Preview | Terminal):
            self._release()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_S, self._release)

    async def take(self, acknowledged: int, timeout: float) -> Batch:
        """Everything after cursor `acknowledged`, with the new cursor; waits up to `timeout` seconds for something."""
        while self._acknowledged < acknowledged and self._events:
            self._events.popleft()
            self._acknowledged += 1
        if self._due <= self._acknowledged:
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout)
        return self._cursor, list(self._events)

    def wake(self) -> None:
        """Ends a `take` that waits, with whatever may leave."""
        self._changed.set()

    @property
    def _cursor(self) -> int:
        return self._acknowledged + len(self._events)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = self._cursor
        self._changed.set()
