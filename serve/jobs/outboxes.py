"""Which Gateway watches which job: listened for as long as it watches, forgotten when it is gone."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serve.errors import NotFound
from serve.jobs.job import Listener
from serve.jobs.outbox import Outbox
from serve.messages import Event, Terminal

POLLS_EVERY_S = 3.0
GONE_S = 60.0  # a Gateway polls every few seconds


class Jobs(Protocol):
    """The Dispatcher, as far as it is needed here."""

    async def listen(self, job_id: str, listener: Listener, after: int) -> object: ...

    def unlisten(self, job_id: str, listener: Listener) -> None: ...


@dataclass(slots=True, eq=False)
class _Polls:
    """How many must come until what a Gateway said with one is newer than this was made."""

    missing: int
    come: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class _Link:
    """To one Gateway. `epoch` is new when this was made anew: the Gateway then watches again what it watches.

    `tickets` holds, for each job that has not ended, the number of the Gateway's newest watch.
    """

    polled_at: float
    epoch: str = field(default_factory=lambda: secrets.token_hex(8))
    outbox: Outbox = field(default_factory=Outbox)
    tickets: dict[str, int] = field(default_factory=dict)
    waits: bool = False
    awaited: list[_Polls] = field(default_factory=list)

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
        hurry = _count_down(link)
        link.waits = True
        try:
            cursor, events = await link.outbox.take(
                acknowledged if epoch == link.epoch else 0, 0.0 if hurry else timeout
            )
        finally:
            link.waits = False
        return link.epoch, cursor, events

    async def polled_again(self, without: str, timeout: float) -> None:
        """Returns when every other Gateway has sent a poll that it began after this call, or after `timeout` seconds.

        One that waits here sends its next when this one is answered; one on its way may have been written before.
        """
        others = [link for gateway_id, link in self._links.items() if gateway_id != without]
        wanted = []
        for link in others:
            if self._clock() - link.polled_at <= timeout + POLLS_EVERY_S:
                polls = _Polls(1 if link.waits else 2)
                link.awaited.append(polls)
                link.outbox.wake()
                wanted.append(asyncio.ensure_future(polls.come.wait()))
        if wanted:
            _, late = await asyncio.wait(wanted, timeout=timeout)
            for task in late:
                task.cancel()

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


def _count_down(link: _Link) -> bool:
    """Whether another poll is wanted at once."""
    for polls in link.awaited:
        polls.missing -= 1
        if polls.missing <= 0:
            polls.come.set()
    link.awaited = [polls for polls in link.awaited if polls.missing > 0]
    return bool(link.awaited)
