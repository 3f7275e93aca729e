"""Which jobs need which input pictures: a row for each, as long as the job may be drawn again.

That is until it is forgotten, or until its last picture is deleted. An input without a row is nobody's, and the keeper
removes it. All functions take the open connection of a transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Select, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.record import JobRecord
from serve.jobs.tables import assets, job_inputs, jobs

AT_ONCE = 500  # names in one statement


async def record(connection: AsyncConnection, records: Iterable[JobRecord]) -> None:
    """Of jobs that are stored now."""
    rows = [{"job_id": record.id, "input": name} for record in records for name in record.submission.request.inputs]
    if rows:
        await release(connection, job_inputs.c.job_id.in_({row["job_id"] for row in rows}))  # of the same id, deleted
        await connection.execute(insert(job_inputs), rows)


async def forget(connection: AsyncConnection, of_jobs: ColumnElement[bool]) -> None:
    """Before jobs are forgotten."""
    await release(connection, job_inputs.c.job_id.in_(select(jobs.c.id).where(of_jobs)))


async def release(connection: AsyncConnection, which: ColumnElement[bool]) -> None:
    await connection.execute(delete(job_inputs).where(which))


async def release_without_pictures(connection: AsyncConnection, asset_ids: Iterable[str]) -> None:
    """After these pictures were deleted: of jobs that have none left."""
    for chunk in _chunks(sorted({id.rpartition("-")[0] for id in asset_ids})):
        left = select(assets.c.job_id).where(assets.c.job_id.in_(chunk))
        await release(connection, job_inputs.c.job_id.in_(chunk) & job_inputs.c.job_id.not_in(left))


async def release_ended(connection: AsyncConnection, user: str) -> None:
    """Of all jobs of a user that have ended, those that failed included."""
    ended = select(jobs.c.id).where(jobs.c.user == user, jobs.c.completed_at.is_not(None))
    await release(connection, job_inputs.c.job_id.in_(ended))


def jobs_with(name: str) -> Select[tuple[str]]:
    return select(job_inputs.c.job_id).where(job_inputs.c.input == name)


async def unneeded(connection: AsyncConnection, names: Sequence[str]) -> list[str]:
    """Those of them that no job needs."""
    needed: set[str] = set()
    for chunk in _chunks(names):
        rows = await connection.execute(select(job_inputs.c.input).where(job_inputs.c.input.in_(chunk)))
        needed |= set(rows.scalars())
    return [name for name in names if name not in needed]


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[i : i + AT_ONCE] for i in range(0, len(ids), AT_ONCE))
