"""Events on their way to one Gateway: one link for all its watchers, nothing lost when an answer is."""

from __future__ import annotations

import asyncio
from collections import deque

from serve.messages import Event

Batch = tuple[int, list[Event]]


class Outbox:
    """Events leave in batches; each `take` acknowledges what the one before it brought."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._acknowledged = 0
        self._filled = asyncio.Event()

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._filled.set()

    async def take(self, acknowledged: int, timeout: float) -> Batch:
        """Everything after cursor `acknowledged`, with the new cursor; waits up to `timeout` seconds for something."""
        while self._acknowledged < acknowledged and self._events:
            self._events.popleft()
            self._acknowledged += 1
        if not self._events:
            self._filled.clear()
            try:
                await asyncio.wait_for(self._filled.wait(), timeout)
            except TimeoutError:
                return self._acknowledged, []
        return self._acknowledged + len(self._events), list(self._events)
