"""What users have drawn, counted in the transactions that store their jobs and the ends of these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    and_,
    delete,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.errors import QuotaExceeded
from serve.jobs.record import JobRecord
from serve.jobs.tables import jobs, metadata
from serve.messages import JobStatus
from serve.quota import SPANS, Amount, Quota, Span, Usage, Window, began

KEPT_DAYS = 31

usage = Table(
    "usage",
    metadata,
    Column("user", Text, nullable=False),
    Column("span", Text, nullable=False),
    Column("began_at", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("pixel_steps", BigInteger, nullable=False),
    PrimaryKeyConstraint("user", "span", "began_at"),
    Index("ix_usage_began_at", "began_at"),
)

_UPSERT = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_NEVER_BEGUN = (JobStatus.CANCELED, JobStatus.EXPIRED)

Row = tuple[str, Span, int]


async def charge(connection: AsyncConnection, records: Iterable[JobRecord]) -> dict[str, QuotaExceeded]:
    """Counts each new job, or says by its id why it is refused. What is answered without being drawn costs nothing."""
    charged = [record for record in records if record.submission.quota is not None and not record.status.terminal]
    counted = await _counted(connection, {row for record in charged for row in _rows(record)})
    added: defaultdict[Row, Amount] = defaultdict(Amount)
    refused: dict[str, QuotaExceeded] = {}
    for record in charged:
        quota, amount = record.submission.quota, record.submission.request.amount
        assert quota is not None
        minute, day = (counted[row] + added[row] for row in _rows(record))
        before = Usage(at=record.created_at, minute=minute, day=day)
        if (refusal := _refusal(before, amount, quota)) is not None:
            refused[record.id] = refusal
            continue
        for row in _rows(record):
            added[row] += amount
    await _add(connection, added)
    return refused


async def refund(connection: AsyncConnection, records: Iterable[JobRecord]) -> None:
    """Before the ends of these are saved: gives back what was not drawn, once, as a job ends only once."""
    owed = {record.id: (record, amount) for record in records if (amount := _owed(record)) is not None}
    if not owed:
        return
    ending = await connection.execute(select(jobs.c.id).where(jobs.c.id.in_(owed), jobs.c.completed_at.is_(None)))
    for (job_id,) in ending:
        record, amount = owed[job_id]
        given = {"images": usage.c.images - amount.images, "pixel_steps": usage.c.pixel_steps - amount.pixel_steps}
        await connection.execute(update(usage).where(or_(*map(_is, _rows(record)))).values(given))


async def used(connection: AsyncConnection, user: str, at: float) -> Usage:
    rows: list[Row] = [(user, span, began(span, at)) for span in SPANS]
    counted = await _counted(connection, set(rows))
    minute, day = (counted[row] for row in rows)
    return Usage(at=at, minute=minute, day=day)


async def prune(connection: AsyncConnection, now: float) -> None:
    """Days are kept for a month, minutes for a day."""
    old = usage.c.began_at < now - KEPT_DAYS * SPANS["day"]
    old_minute = and_(usage.c.span == "minute", usage.c.began_at < now - SPANS["day"])
    await connection.execute(delete(usage).where(or_(old, old_minute)))


def _refusal(before: Usage, amount: Amount, quota: Quota) -> QuotaExceeded | None:
    after = (before + amount).windows(quota)
    over = [window for window in after if window.used > window.limit]
    if not over:
        return None
    worst = max(over, key=lambda window: window.reset_s)
    left = next(window for window in before.windows(quota) if window.name == worst.name).remaining
    wanted = _of(worst, amount)
    message = (
        f"{wanted:,} {_unit(worst)} are over your quota of {worst.limit:,} a {_span(worst)}, of which {left:,} are left"
    )
    if wanted > worst.limit:
        return QuotaExceeded(message, hint="ask for less: this is more than the whole quota", retry_after=worst.reset_s)
    return QuotaExceeded(message, hint=f"try again in {worst.reset_s} s, or ask for less", retry_after=worst.reset_s)


def _of(window: Window, amount: Amount) -> int:
    return amount.images if window.of_images else amount.pixel_steps


def _unit(window: Window) -> str:
    return "images" if window.of_images else "pixel·steps"


def _span(window: Window) -> str:
    return window.name.rpartition("-")[2]


def _owed(record: JobRecord) -> Amount | None:
    """All of a job that failed or never began, and of one that succeeded what it did not draw."""
    submission = record.submission
    if submission.quota is None or not record.status.terminal:
        return None
    amount, n = submission.request.amount, submission.request.n
    if record.status is JobStatus.FAILED or (record.status in _NEVER_BEGUN and record.started_at is None):
        return amount
    missing = n - len(record.images) if record.status is JobStatus.SUCCEEDED else 0
    return Amount(images=missing, pixel_steps=amount.pixel_steps // n * missing) if missing else None


def _rows(record: JobRecord) -> list[Row]:
    return [(record.submission.user, span, began(span, record.created_at)) for span in SPANS]


async def _counted(connection: AsyncConnection, rows: set[Row]) -> defaultdict[Row, Amount]:
    counted: defaultdict[Row, Amount] = defaultdict(Amount)
    if rows:
        users, _, times = zip(*rows, strict=True)
        near = select(usage).where(usage.c.user.in_(set(users)), usage.c.began_at.in_(set(times)))
        for row in (await connection.execute(near)).mappings():
            key = (row["user"], row["span"], row["began_at"])
            counted[key] = Amount(images=row["images"], pixel_steps=row["pixel_steps"])
    return counted


async def _add(connection: AsyncConnection, added: dict[Row, Amount]) -> None:
    values = [
        {"user": user, "span": span, "began_at": at, "images": amount.images, "pixel_steps": amount.pixel_steps}
        for (user, span, at), amount in added.items()
        if amount.images
    ]
    if not values:
        return
    new: Any = _UPSERT[connection.dialect.name](usage)
    sums = {name: usage.c[name] + new.excluded[name] for name in ("images", "pixel_steps")}
    await connection.execute(new.on_conflict_do_update(index_elements=["user", "span", "began_at"], set_=sums), values)


def _is(row: Row) -> ColumnElement[bool]:
    user, span, at = row
    return and_(usage.c.user == user, usage.c.span == span, usage.c.began_at == at)
