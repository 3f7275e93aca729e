"""Webhooks that are to be sent: a row for each ended job with a `webhook_url`, written with the job's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import (
    Column,
    Double,
    Index,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.errors import Unavailable
from serve.jobs.commits import Batch
from serve.jobs.record import JobRecord
from serve.jobs.tables import jobs, metadata
from serve.messages import Delivery, JobView

deliveries = Table(
    "deliveries",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("next_attempt_at", Double),  # null: nothing is to be done
    Index("ix_deliveries_next_attempt_at", "next_attempt_at"),
)

# Where the job is there, has ended, and is not in the table yet: a commit that is repeated inserts nothing twice.
_POST = insert(deliveries).from_select(
    ["job_id", "host", "url", "status", "attempts", "next_attempt_at"],
    select(
        jobs.c.id,
        bindparam("post_host", type_=Text),
        bindparam("post_url", type_=Text),
        literal("pending", Text),
        literal(0, Integer),
        jobs.c.completed_at,
    ).where(
        jobs.c.id == bindparam("post_job_id", type_=Text),
        jobs.c.completed_at.is_not(None),
        ~exists().where(deliveries.c.job_id == jobs.c.id),
    ),
)
_SAVE = update(deliveries).where(deliveries.c.job_id == bindparam("saved_job_id"))


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


class Deliveries:
    """Part of the job store: written in its transactions, read on its connections."""

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]], batch: Callable[[], Batch]
    ) -> None:
        self._connect = connect
        self._batch = batch
        self.changed = asyncio.Event()  # there may be something to send

    async def save(self, delivery: Delivery) -> None:
        """Returns after the commit; nothing when the job was deleted. Raises StaleWriter."""
        batch = self._batch()
        batch.deliveries[delivery.job_id] = delivery
        await batch.applying()

    async def due(self, now: float, *, limit: int, without: Collection[str], hosts: Collection[str]) -> list[Delivery]:
        """Longest due first; `without` names jobs, `hosts` hosts that are left out. Raises Unavailable."""
        statement = select(deliveries).where(deliveries.c.next_attempt_at <= now)
        if without:
            statement = statement.where(deliveries.c.job_id.not_in(without))
        if hosts:
            statement = statement.where(deliveries.c.host.not_in(hosts))
        return await self._read(statement.order_by(deliveries.c.next_attempt_at).limit(limit))

    async def next_due(self, after: float) -> float | None:
        """Unix time. Raises Unavailable."""
        try:
            async with self._connect() as connection:
                soonest = select(func.min(deliveries.c.next_attempt_at)).where(deliveries.c.next_attempt_at > after)
                at: float | None = (await connection.execute(soonest)).scalar_one()
                return at
        except (DBAPIError, OSError) as error:
            raise _not_answering() from error

    async def shown(self, views: list[JobView]) -> list[JobView]:
        """With the state of their webhooks where there are any to be sent."""
        ended = [view.id for view in views if view.webhook is not None and view.status.terminal]
        if not ended:
            return views
        found = await self._read(select(deliveries).where(deliveries.c.job_id.in_(ended)))
        by_id = {delivery.job_id: delivery for delivery in found}
        return [replace(view, webhook=by_id[view.id]) if view.id in by_id else view for view in views]

    async def apply(self, connection: AsyncConnection, batch: Batch) -> None:
        """Last in the transaction of the jobs."""
        if batch.ended_before is not None:
            orphans = ~exists().where(jobs.c.id == deliveries.c.job_id)
            await connection.execute(delete(deliveries).where(orphans))
        if batch.deletes:
            await connection.execute(delete(deliveries).where(deliveries.c.job_id.in_(batch.deletes)))
        if posted := _posted([*batch.adds, *batch.saves.values()]):
            await connection.execute(_POST, posted)
        if batch.deliveries:
            await connection.execute(_SAVE, [_state_row(delivery) for delivery in batch.deliveries.values()])

    def announce(self, batch: Batch) -> None:
        """After the commit."""
        if _posted([*batch.adds, *batch.saves.values()]):
            self.changed.set()

    async def _read(self, statement: Select[Any]) -> list[Delivery]:
        try:
            async with self._connect() as connection:
                rows = (await connection.execute(statement)).mappings()
                return [Delivery(**{name: value for name, value in row.items() if name != "host"}) for row in rows]
        except (DBAPIError, OSError) as error:
            raise _not_answering() from error


def _posted(records: Iterable[JobRecord]) -> list[dict[str, str]]:
    return [
        {"post_job_id": record.id, "post_host": host_of(url), "post_url": url}
        for record in records
        if record.completed_at is not None and (url := record.submission.webhook_url) is not None
    ]


def _state_row(delivery: Delivery) -> dict[str, Any]:
    return {
        "saved_job_id": delivery.job_id,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "next_attempt_at": delivery.next_attempt_at,
    }


def _not_answering() -> Unavailable:
    return Unavailable("the job store is not answering", hint="try again; the server's log has the reason")
