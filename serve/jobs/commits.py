"""Many writes, one transaction: what is asked for within milliseconds is committed and acknowledged together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.errors import Unavailable, ZImageError
from serve.jobs.record import JobRecord
from serve.messages import Delivery

log = structlog.get_logger()

WINDOW_S = 0.003
QUIET_S = 0.025  # after so long without a commit the next is not held open for company
NOTE_S = 0.5  # what nobody waits for is committed this late, or with the next that somebody does
RETRY_S = 0.2

Outcome = JobRecord | ZImageError


@dataclass(slots=True)
class Change:
    """Something else that is to be done in the transaction; its answer is told after the commit."""

    work: Callable[[AsyncConnection], Awaitable[Any]]
    done: asyncio.Future[Any]
    answer: Any = None

    async def apply(self, connection: AsyncConnection) -> None:
        self.answer = await self.work(connection)


@dataclass(slots=True)
class Batch:
    """Applied in the order of its fields. Of each job only the newest state is saved."""

    ended_before: float | None = None
    state: dict[str, str] = field(default_factory=dict)
    deletes: set[str] = field(default_factory=set)
    adds: list[JobRecord] = field(default_factory=list)
    saves: dict[str, JobRecord] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    _added: list[asyncio.Future[JobRecord]] = field(default_factory=list)
    _applied: list[asyncio.Future[None]] = field(default_factory=list)

    def adding(self, record: JobRecord) -> asyncio.Future[JobRecord]:
        added: asyncio.Future[JobRecord] = asyncio.get_running_loop().create_future()
        self.adds.append(record)
        self._added.append(added)
        return added

    def applying(self) -> asyncio.Future[None]:
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._applied.append(applied)
        return applied

    def changing(self, work: Callable[[AsyncConnection], Awaitable[Any]]) -> asyncio.Future[Any]:
        change = Change(work, asyncio.get_running_loop().create_future())
        self.changes.append(change)
        return change.done

    def acknowledge(self, outcomes: list[Outcome]) -> None:
        for added, outcome in zip(self._added, outcomes, strict=True):
            if added.done():
                continue  # its caller has left
            if isinstance(outcome, JobRecord):
                added.set_result(outcome)
            else:
                added.set_exception(outcome)
        for applied in self._applied:
            if not applied.done():
                applied.set_result(None)
        for change in self.changes:
            if not change.done.done():
                change.done.set_result(change.answer)

    def refuse(self, error: Exception) -> None:
        """What its caller can ask for again."""
        for asked in (*self._added, *(change.done for change in self.changes)):
            if not asked.done():
                asked.set_exception(error)
        self.adds, self._added, self.changes = [], [], []

    def fail(self, error: Exception) -> None:
        self.refuse(error)
        for applied in self._applied:
            if not applied.done():
                applied.set_exception(error)

    def precede(self, later: Batch) -> None:
        """What could not be committed is tried again with what came after it."""
        later.ended_before = later.ended_before or self.ended_before
        later.deletes |= self.deletes
        later.state = self.state | later.state
        later.saves = self.saves | later.saves
        later.deliveries = self.deliveries | later.deliveries
        later._applied = self._applied + later._applied


class GroupCommit:
    """One transaction at a time. Where the database does not answer, adds and changes are refused, and all else is
    tried again."""

    def __init__(self, commit: Callable[[Batch], Awaitable[list[Outcome]]]) -> None:
        self._commit = commit
        self._batch = Batch()
        self._work = asyncio.Event()
        self._failure: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended_at = -math.inf
        self._running = asyncio.create_task(self._run())

    @property
    def batch(self) -> Batch:
        """What the next transaction takes along. Raises StaleWriter, or whatever has ended this writer."""
        self.check()
        self._work.set()
        return self._batch

    @property
    def leisurely(self) -> Batch:
        """The same batch, but nobody waits for it. Raises as `batch`."""
        self.check()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NOTE_S, self._work.set)
        return self._batch

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Commits what is left, unless the writer has ended."""
        if self._failure is None:
            with suppress(ZImageError):
                await self.batch.applying()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        while self._failure is None:
            await self._work.wait()
            busy = time.monotonic() - self._ended_at < QUIET_S
            await asyncio.sleep(WINDOW_S if busy else 0.0)
            self._work.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            batch, self._batch = self._batch, Batch()
            try:
                batch.acknowledge(await self._commit(batch))
            except (OperationalError, InterfaceError, InternalError, OSError) as error:  # the database is away
                await self._later(batch, error)
            except (
                Exception
            ) as error:  # tried again it would fail again, and nobody may wait for a writer that has ended
                self._failure = error
                batch.fail(error)
                self._batch.fail(error)
            self._ended_at = time.monotonic()

    async def _later(self, batch: Batch, error: Exception) -> None:
        log.error("the job store does not take writes, trying again", error=str(error))
        hint = "try again; the server's log has the reason"
        batch.refuse(Unavailable("the job store is not answering", hint=hint, retry_after=5))
        batch.precede(self._batch)
        self._work.set()
        await asyncio.sleep(RETRY_S)
