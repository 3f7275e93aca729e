"""Jobs that survive every process: SQLite beside the pictures, or PostgreSQL. One writer, fenced by its epoch."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, bindparam, delete, event, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from serve.errors import ConfigError, IdempotencyKeyReused, StaleWriter
from serve.jobs import gallery, inputs, state, usage
from serve.jobs.cached_rows import CachedRow, cached_rows
from serve.jobs.commits import Batch, GroupCommit, Outcome
from serve.jobs.deliveries import Deliveries
from serve.jobs.keys import SqlKeys
from serve.jobs.reading import reading
from serve.jobs.record import JobRecord, first_row, from_row, searchable, state_row
from serve.jobs.tables import jobs, migrate, writer
from serve.messages import JobQuery, Submission
from serve.quota import Usage
from serve.settings import Settings

KEYS_KEPT_S = 24 * 3600
BUSY_MS = 10_000
STALLED_MS = 5_000  # a transaction of a stalled writer is ended by PostgreSQL, so that another writer can take over

T = TypeVar("T")
_SAVE = update(jobs).where(jobs.c.id == bindparam("job_id"), jobs.c.completed_at.is_(None))


class JobStore(Protocol):
    """Every write raises StaleWriter once another one has opened the same store, and nothing is written then."""

    deliveries: Deliveries

    async def open(self) -> None:
        """Creates or migrates the tables, and claims the next epoch."""

    async def close(self) -> None: ...

    async def check(self) -> None:
        """Raises StaleWriter, or what else has ended this writer."""

    async def add(self, record: JobRecord) -> JobRecord:
        """Returns after the commit: the record, or the earlier one that this repeats. Raises IdempotencyKeyReused."""

    async def repeated(self, submission: Submission) -> JobRecord | None:
        """The job that it repeats: of the same id, or the same user and idempotency key within 24 h.

        Raises IdempotencyKeyReused when that one had another body.
        """

    async def save(self, record: JobRecord) -> None:
        """Returns after the commit. A job that has ended never changes again."""

    def note(self, record: JobRecord) -> None:
        """Saves soon, with the next commit that somebody waits for or within half a second."""

    async def unfinished(self) -> list[JobRecord]:
        """Oldest first."""

    async def cached(self, since: float, max_bytes: int) -> list[CachedRow]:
        """Pictures that may answer later requests, of jobs that ended since then: newest first."""

    async def get(self, job_id: str) -> JobRecord | None: ...

    async def find(self, query: JobQuery) -> list[JobRecord]: ...

    async def delete(self, job_id: str) -> None:
        """Nothing when it is not there."""

    async def prune(self, ended_before: float) -> None:
        """Forgets jobs that ended before this Unix time."""

    async def change(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Does something else in the next transaction, and answers after the commit.

        `work` raises nothing, lest it fail others in the same commit: a refusal is its answer. Raises Unavailable.
        """

    async def look(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Reads in a transaction of its own."""

    async def usage(self, user: str, at: float) -> Usage:
        """What the user has drawn in the minute and the day around this Unix time, jobs on their way included."""

    @property
    def keys(self) -> SqlKeys: ...

    async def remember(self, key: str, value: str) -> None:
        """Of the service itself; returns after the commit."""

    async def recall(self) -> dict[str, str]:
        """All that was remembered."""


class SqlJobStore:
    """A JobStore on SQLAlchemy Core; `url` names an async driver."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._writing = self._engine.execution_options(writes=True)
        self.keys = SqlKeys(self._engine)
        self._epoch = 0
        self._writes: GroupCommit | None = None
        self.deliveries = Deliveries(self._engine.connect, lambda: self._batch)

    async def prepare(self) -> None:
        """Creates or migrates the tables, and leaves the writer alone."""
        async with self._writing.begin() as connection:
            await connection.run_sync(migrate)

    async def open(self) -> None:
        async with self._writing.begin() as connection:
            await connection.run_sync(migrate)
            claim = update(writer).values(epoch=writer.c.epoch + 1).returning(writer.c.epoch)
            self._epoch = (await connection.execute(claim)).scalar_one()
        self._writes = GroupCommit(self._commit)

    async def close(self) -> None:
        writes, self._writes = self._writes, None
        if writes is not None:
            await writes.close()
        await self._engine.dispose()

    async def check(self) -> None:
        assert self._writes is not None, "the store is not open"
        self._writes.check()
        with suppress(DBAPIError, OSError):  # a database that is away for a while comes back to the same writer
            async with self._engine.connect() as connection:
                await self._fence(connection)

    async def add(self, record: JobRecord) -> JobRecord:
        first_row(record)  # what cannot be stored fails here, and not others in the same commit
        return await self._batch.adding(record)

    async def repeated(self, submission: Submission) -> JobRecord | None:
        return _repeated(submission, _seen(await self._read(_like([submission]))))

    async def save(self, record: JobRecord) -> None:
        self._batch.saves[record.id] = record
        await self._batch.applying()

    def note(self, record: JobRecord) -> None:
        assert self._writes is not None, "the store is not open"
        self._writes.leisurely.saves[record.id] = record

    async def unfinished(self) -> list[JobRecord]:
        return await self._read(
            select(jobs).where(jobs.c.completed_at.is_(None)).order_by(jobs.c.created_at, jobs.c.id)
        )

    async def cached(self, since: float, max_bytes: int) -> list[CachedRow]:
        async with reading(self._engine) as connection:
            return await cached_rows(connection, since, max_bytes)

    async def get(self, job_id: str) -> JobRecord | None:
        found = await self._read(select(jobs).where(jobs.c.id == job_id))
        return found[0] if found else None

    async def find(self, query: JobQuery) -> list[JobRecord]:
        if query.statuses and self._batch.saves:
            await self._batch.applying()  # what was noted is looked for, too
        statement = select(jobs).order_by(jobs.c.id.desc()).limit(query.limit)
        if query.user is not None:
            statement = statement.where(jobs.c.user == query.user)
        if query.statuses:
            statement = statement.where(jobs.c.status.in_(map(str, query.statuses)))
        if query.text:
            statement = statement.where(jobs.c.search.contains(searchable(query.text), autoescape=True))
        if query.input is not None:
            statement = statement.where(jobs.c.id.in_(inputs.jobs_with(query.input)))
        if query.before is not None:
            statement = statement.where(jobs.c.id < query.before)
        return await self._read(statement)

    async def delete(self, job_id: str) -> None:
        self._batch.deletes.add(job_id)
        await self._batch.applying()

    async def prune(self, ended_before: float) -> None:
        self._batch.ended_before = ended_before
        await self._batch.applying()

    async def change(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        answer: T = await self._batch.changing(work)
        return answer

    async def look(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with reading(self._engine) as connection:
            return await work(connection)

    async def usage(self, user: str, at: float) -> Usage:
        return await self.look(partial(usage.used, user=user, at=at))

    async def remember(self, key: str, value: str) -> None:
        self._batch.state[key] = value
        await self._batch.applying()

    async def recall(self) -> dict[str, str]:
        async with reading(self._engine) as connection:
            return await state.read(connection)

    @property
    def _batch(self) -> Batch:
        assert self._writes is not None, "the store is not open"
        return self._writes.batch

    async def _read(self, statement: Select[Any]) -> list[JobRecord]:
        async with reading(self._engine) as connection:
            records = [from_row(row) for row in (await connection.execute(statement)).mappings()]
            return await gallery.mark(connection, records)

    async def _commit(self, batch: Batch) -> list[Outcome]:
        async with self._writing.begin() as connection:
            await self._fence(connection)
            if batch.ended_before is not None:
                await _forget(connection, jobs.c.completed_at < batch.ended_before)
                await usage.prune(connection, time.time())
            if batch.state:
                await state.write(connection, batch.state)
            if batch.deletes:
                await _forget(connection, jobs.c.id.in_(batch.deletes))
            outcomes = await _add(connection, batch.adds) if batch.adds else []
            if batch.saves:
                await gallery.record(connection, batch.saves.values())
                await usage.refund(connection, batch.saves.values())
                rows = [state_row(record) | {"job_id": record.id} for record in batch.saves.values()]
                await connection.execute(_SAVE, rows)
            for change in batch.changes:
                await change.apply(connection)
            await self.deliveries.apply(connection, batch)
            if connection.dialect.name == "postgresql":  # without it STALLED_MS does not begin after a pipeline
                await connection.execute(select(1))
        self.deliveries.announce(batch)
        return outcomes

    async def _fence(self, connection: AsyncConnection) -> None:
        """Locks the epoch to the end of the transaction: nobody claims the next one in between."""
        epoch = (await connection.execute(select(writer.c.epoch).with_for_update())).scalar_one()
        if epoch != self._epoch:
            raise StaleWriter(
                f"the job store belongs to writer {epoch}, this one is {self._epoch}",
                hint="it is replaced; try again",
                retry_after=5,
            )


def store_of(settings: Settings) -> SqlJobStore:
    """The store that the settings name; by default a file in the data folder, readable by its owner only."""
    if settings.database is not None:
        return SqlJobStore(settings.database)
    settings.data.mkdir(parents=True, exist_ok=True)
    file = settings.data.absolute() / "jobs.db"
    file.touch(0o600)
    return SqlJobStore(f"sqlite+aiosqlite:///{file}")


def _engine(url: str) -> AsyncEngine:
    parsed = make_url(url)
    try:
        engine = create_async_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"database {parsed.render_as_string()} needs the package {error.name}",
            hint="pip install 'zimage-serve[postgres]'",
        ) from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    else:
        event.listen(engine.sync_engine, "connect", _prepare_postgresql)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions, _begin_sqlite does
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prepare_postgresql(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = {STALLED_MS}")
    cursor.close()
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    """A write transaction takes its lock at once: one that began reading could not be upgraded while another writes."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


Seen = Mapping[str | tuple[str, str], JobRecord]


async def _forget(connection: AsyncConnection, which: ColumnElement[bool]) -> None:
    await gallery.drop_jobs(connection, which)
    await inputs.forget(connection, which)
    await connection.execute(delete(jobs).where(which))


async def _add(connection: AsyncConnection, records: list[JobRecord]) -> list[Outcome]:
    """Inserts what is new; what repeats another is answered with that."""
    if keys := _keys(record.submission for record in records):
        expired = jobs.c.idempotency_key.in_(keys) & (jobs.c.created_at < time.time() - KEYS_KEPT_S)
        await connection.execute(update(jobs).where(expired).values(idempotency_key=None))
    rows = await connection.execute(_like(record.submission for record in records))
    seen = _seen(map(from_row, rows.mappings()))
    outcomes: list[Outcome] = []
    new: list[JobRecord] = []
    for record in records:
        try:
            repeated = _repeated(record.submission, seen)
        except IdempotencyKeyReused as error:
            outcomes.append(error)
            continue
        if repeated is None:
            new.append(record)
            seen |= _seen([record])
        outcomes.append(repeated or record)
    refused = await usage.charge(connection, new)
    if accepted := [record for record in new if record.id not in refused]:
        await connection.execute(insert(jobs), [first_row(record) for record in accepted])
        await gallery.record_new(connection, accepted)
        await inputs.record(connection, accepted)
    return [refused.get(outcome.id, outcome) if isinstance(outcome, JobRecord) else outcome for outcome in outcomes]


def _like(submissions: Iterable[Submission]) -> Select[Any]:
    """Whatever these could repeat."""
    submissions = list(submissions)
    same: ColumnElement[bool] = jobs.c.id.in_([submission.job_id for submission in submissions])
    if keys := _keys(submissions):
        same |= jobs.c.idempotency_key.in_(keys) & (jobs.c.created_at >= time.time() - KEYS_KEPT_S)
    return select(jobs).where(same)


def _keys(submissions: Iterable[Submission]) -> list[str]:
    return [submission.idempotency_key for submission in submissions if submission.idempotency_key is not None]


def _seen(records: Iterable[JobRecord]) -> dict[str | tuple[str, str], JobRecord]:
    records = list(records)
    return {record.id: record for record in records} | {record.key: record for record in records if record.key}


def _repeated(submission: Submission, seen: Seen) -> JobRecord | None:
    if submission.job_id in seen or submission.idempotency_key is None:
        return seen.get(submission.job_id)
    earlier = seen.get((submission.user, submission.idempotency_key))
    if earlier is not None and earlier.submission.body_sha256 != submission.body_sha256:
        raise IdempotencyKeyReused(
            f"the idempotency key {submission.idempotency_key!r} was used before with another body",
            hint=f"send the same body for job {earlier.id}, or another key for a new job",
        )
    return earlier
