"""Which Gateway watches which job: listened for as long as it watches, forgotten when it is gone."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serve.errors import NotFound
from serve.jobs.job import Listener
from serve.jobs.outbox import Outbox
from serve.messages import Event, Terminal

GONE_S = 60.0  # a Gateway polls every few seconds


class Jobs(Protocol):
    """The Dispatcher, as far as it is needed here."""

    async def listen(self, job_id: str, listener: Listener, after: int) -> object: ...

    def unlisten(self, job_id: str, listener: Listener) -> None: ...


@dataclass(slots=True, eq=False)
class _Link:
    """To one Gateway. `epoch` is new when this was made anew: the Gateway then watches again what it watches.

    `tickets` holds, for each job that has not ended, the number of the Gateway's newest watch.
    """

    polled_at: float
    epoch: str = field(default_factory=lambda: secrets.token_hex(8))
    outbox: Outbox = field(default_factory=Outbox)
    tickets: dict[str, int] = field(default_factory=dict)

    def put(self, event: Event) -> None:
        self.outbox.put(event)
        if isinstance(event, Terminal):
            self.tickets.pop(event.job_id, None)


class Outboxes:
    def __init__(self, jobs: Jobs, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._clock = clock
        self._links: dict[str, _Link] = {}

    async def watch(self, job_id: str, gateway_id: str, ticket: int) -> None:
        """Raises NotFound."""
        link = self._link(gateway_id)
        link.tickets[job_id] = ticket
        try:
            await self._jobs.listen(job_id, link.put, after=0)
        except NotFound:
            link.tickets.pop(job_id, None)
            raise

    async def poll(
        self, gateway_id: str, epoch: str, acknowledged: int, left: Mapping[str, int], timeout: float
    ) -> tuple[str, int, list[Event]]:
        """The link's epoch, the new cursor, and the events since the acknowledged one, of the same epoch.

        `left` names jobs that nobody watches any more at the Gateway, with the ticket of the watch that has ended: a
        newer one, which may have overtaken this message, goes on.
        """
        link = self._link(gateway_id)
        link.polled_at = self._clock()
        for job_id, ticket in left.items():
            if link.tickets.get(job_id) == ticket:
                del link.tickets[job_id]
                self._jobs.unlisten(job_id, link.put)
        self._drop_gone()
        cursor, events = await link.outbox.take(acknowledged if epoch == link.epoch else 0, timeout)
        return link.epoch, cursor, events

    def wake(self) -> None:
        """Every poll returns now."""
        for link in self._links.values():
            link.outbox.wake()

    def _link(self, gateway_id: str) -> _Link:
        if gateway_id not in self._links:
            self._links[gateway_id] = _Link(self._clock())
        return self._links[gateway_id]

    def _drop_gone(self) -> None:
        now = self._clock()
        for gateway_id, link in list(self._links.items()):
            if now - link.polled_at > GONE_S:
                del self._links[gateway_id]
                for job_id in link.tickets:
                    self._jobs.unlisten(job_id, link.put)
