"""The pictures in the job store: a row for each that its owner may see, and a note of every file that is to go.

A row comes with its job's success and goes before its file does, each in one transaction. What is gone from `assets`
is in `asset_removals` until its files are removed, so a crash in between forgets none. All functions take the open
connection of a transaction.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.errors import InvalidRequest
from serve.jobs import inputs
from serve.jobs.record import JobRecord, from_row, searchable
from serve.jobs.tables import asset_removals as removals
from serve.jobs.tables import assets, jobs
from serve.messages import AssetQuery, AssetView, Deletion, JobStatus, Series

AT_ONCE = 500  # ids in one statement; the databases' limit of parameters is far higher
LATE_WRITES_S = 120.0  # a replica that was told to stop, or taken for lost, may still write a picture


async def record(connection: AsyncConnection, records: Iterable[JobRecord]) -> None:
    """Before their rows are saved: pictures of jobs that succeed now; files of those that end otherwise are to go."""
    ending = {record.id: record for record in records if record.status.terminal}
    if not ending:
        return
    open_jobs = select(jobs.c.id).where(jobs.c.id.in_(ending), jobs.c.completed_at.is_(None))
    await record_new(connection, [ending[id] for id in (await connection.execute(open_jobs)).scalars()])


async def record_new(connection: AsyncConnection, records: Iterable[JobRecord]) -> None:
    """The same for jobs that are not stored yet, or known not to have ended."""
    ended = [record for record in records if record.status.terminal]
    pictures = [row for record in ended if record.status is JobStatus.SUCCEEDED for row in _rows(record)]
    ids = [row["id"] for row in pictures]
    if ids:
        known = await _known(connection, ids)
        if new := [row for row in pictures if row["id"] not in known]:
            await connection.execute(insert(assets), new)
        await removed(connection, ids)  # of a job that was deleted and sent again
    begun = [record for record in ended if record.started_at is not None or record.attempt > 1]
    leftovers = [id for record in begun if record.status is not JobStatus.SUCCEEDED for id in asset_ids(record)]
    if leftovers:
        await remove(connection, leftovers, time.time() + LATE_WRITES_S)


def asset_ids(record: JobRecord) -> list[str]:
    """All that it may have written."""
    return [f"{record.id}-{image}" for image in range(record.submission.request.n)]


async def drop_jobs(connection: AsyncConnection, of_jobs: ColumnElement[bool]) -> None:
    """Before jobs are forgotten: their pictures go with them."""
    await _drop(connection, assets.c.job_id.in_(select(jobs.c.id).where(of_jobs)))


async def find(connection: AsyncConnection, query: AssetQuery) -> list[AssetView]:
    """A job's pictures are as old as the job, and come in their order."""
    statement = (
        select(assets.c.id.label("asset_id"), jobs)
        .join(jobs, jobs.c.id == assets.c.job_id)
        .order_by(assets.c.job_id.desc(), assets.c.image)
        .limit(query.limit)
    )
    if query.user is not None:
        statement = statement.where(assets.c.user == query.user)
    if query.ids is not None:
        statement = statement.where(assets.c.id.in_(query.ids))
    if query.text:
        statement = statement.where(jobs.c.search.contains(searchable(query.text), autoescape=True))
    if query.after is not None:
        job_id, _, image = query.after.rpartition("-")
        same_job = and_(assets.c.job_id == job_id, assets.c.image > int(image))
        statement = statement.where(or_(assets.c.job_id < job_id, same_job))
    rows = (await connection.execute(statement)).mappings()
    return [view for row in rows if (view := _view(row["asset_id"], from_row(dict(row)))) is not None]


async def delete_some(connection: AsyncConnection, ids: Sequence[str], user: str | None) -> Deletion:
    """Of one user, or whosever they are."""
    deleted: set[str] = set()
    for chunk in _chunks(ids):
        mine = assets.c.id.in_(chunk)
        deleted |= set(await _drop(connection, mine if user is None else mine & (assets.c.user == user)))
    await inputs.release_without_pictures(connection, deleted)
    ids = list(dict.fromkeys(ids))
    return Deletion(
        deleted=tuple(id for id in ids if id in deleted), unknown=tuple(id for id in ids if id not in deleted)
    )


async def delete_all(connection: AsyncConnection, user: str, confirm: int | None) -> Deletion | InvalidRequest:
    """All of a user's, if he knows how many: counted in the same transaction."""
    mine = assets.c.user == user
    count = (await connection.execute(select(func.count()).select_from(assets).where(mine))).scalar_one()
    if confirm != count:
        said = "confirm is left out" if confirm is None else f"confirm is {confirm}"
        return InvalidRequest(
            f"{said}, and you have {count} picture{'' if count == 1 else 's'}; nothing was deleted",
            param="confirm",
            hint=f"send confirm={count} to delete them all",
        )
    await inputs.release_ended(connection, user)
    return Deletion(deleted=tuple(await _drop(connection, mine)))


async def too_old(connection: AsyncConnection, before: float, limit: int) -> list[str]:
    """The oldest pictures that were made before this Unix time."""
    oldest = select(assets.c.id).where(assets.c.created_at < before).order_by(assets.c.created_at).limit(limit)
    return list((await connection.execute(oldest)).scalars())


async def totals(connection: AsyncConnection) -> dict[Series, float]:
    """As gauges."""
    row = (await connection.execute(select(func.count(), func.sum(assets.c.bytes)))).one()
    return {("zimage_store_assets", ()): row[0], ("zimage_store_bytes", ()): row[1] or 0}


async def over_budget(connection: AsyncConnection, max_bytes: int, limit: int) -> list[str]:
    """The oldest pictures, as many as must go so that the rest have at most so many bytes."""
    excess = (await connection.execute(select(func.sum(assets.c.bytes)))).scalar_one_or_none() or 0
    excess = int(excess) - max_bytes
    oldest = select(assets.c.id, assets.c.bytes).order_by(assets.c.created_at, assets.c.id).limit(limit)
    ids: list[str] = []
    for id, size in (await connection.execute(oldest)).all() if excess > 0 else ():
        if excess <= 0:
            break
        ids.append(id)
        excess -= size
    return ids


async def there(connection: AsyncConnection, job_ids: Collection[str]) -> set[str]:
    """The pictures that these jobs still have."""
    found: set[str] = set()
    for chunk in _chunks(list(job_ids)):
        rows = await connection.execute(select(assets.c.id).where(assets.c.job_id.in_(chunk)))
        found |= set(rows.scalars())
    return found


async def between(connection: AsyncConnection, after: str, upto: str | None) -> list[str]:
    """Of all jobs with `after` < id <= `upto`; None is the end."""
    statement = select(assets.c.id).where(assets.c.job_id > after)
    if upto is not None:
        statement = statement.where(assets.c.job_id <= upto)
    return list((await connection.execute(statement)).scalars())


async def mark(connection: AsyncConnection, records: list[JobRecord]) -> list[JobRecord]:
    """With those of their pictures that are not there any more marked as deleted."""
    if not any(record.images for record in records):
        return records
    left = await there(connection, [record.id for record in records if record.images])
    return [replace(record, images=marked(record.images, left)) for record in records]


def marked(images: Iterable[Any], left: Collection[str]) -> tuple[Any, ...]:
    return tuple(image if image.asset_id in left else replace(image, deleted=True) for image in images)


async def remove(connection: AsyncConnection, ids: Iterable[str], due_at: float) -> None:
    """Notes files that are to go, whether there is a row for them or not."""
    ids = set(ids)
    for chunk in _chunks(list(ids)):
        ids -= set((await connection.execute(select(removals.c.id).where(removals.c.id.in_(chunk)))).scalars())
    if ids:
        await connection.execute(insert(removals), [{"id": id, "due_at": due_at} for id in ids])


async def remove_strays(connection: AsyncConnection, ids: Sequence[str]) -> list[str]:
    """Notes those of these files that have no row; returns them."""
    known = await _known(connection, ids)
    strays = [id for id in ids if id not in known]
    await remove(connection, strays, time.time())
    return strays


async def due(connection: AsyncConnection, limit: int) -> list[str]:
    statement = select(removals.c.id).where(removals.c.due_at <= time.time()).order_by(removals.c.due_at).limit(limit)
    return list((await connection.execute(statement)).scalars())


async def postpone(connection: AsyncConnection, ids: Sequence[str], due_at: float) -> None:
    """Their files could not be removed."""
    for chunk in _chunks(ids):
        await connection.execute(update(removals).where(removals.c.id.in_(chunk)).values(due_at=due_at))


async def removed(connection: AsyncConnection, ids: Sequence[str]) -> None:
    """Their files are gone."""
    for chunk in _chunks(ids):
        await connection.execute(delete(removals).where(removals.c.id.in_(chunk)))


async def _drop(connection: AsyncConnection, which: ColumnElement[bool]) -> list[str]:
    """From the gallery into the removals."""
    again = assets.c.id.in_(select(removals.c.id))
    moved = select(assets.c.id, literal(time.time())).where(which, ~again)
    await connection.execute(insert(removals).from_select(["id", "due_at"], moved))
    return list((await connection.execute(delete(assets).where(which).returning(assets.c.id))).scalars())


async def _known(connection: AsyncConnection, ids: Sequence[str]) -> set[str]:
    """Those that have a row."""
    known: set[str] = set()
    for chunk in _chunks(ids):
        known |= set((await connection.execute(select(assets.c.id).where(assets.c.id.in_(chunk)))).scalars())
    return known


def _rows(record: JobRecord) -> list[dict[str, Any]]:
    return [
        {
            "id": image.asset_id,
            "job_id": record.id,
            "image": number_of(image.asset_id),
            "user": record.submission.user,
            "created_at": record.completed_at,
            "bytes": image.bytes,
        }
        for image in record.images
    ]


def number_of(asset_id: str) -> int:
    return int(asset_id.rpartition("-")[2])


def _view(asset_id: str, job: JobRecord) -> AssetView | None:
    image = next((image for image in job.images if image.asset_id == asset_id), None)
    if image is None or job.completed_at is None:
        return None
    return AssetView(
        image=image,
        job_id=job.id,
        user=job.submission.user,
        created_at=job.completed_at,
        request=job.submission.request,
    )


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[i : i + AT_ONCE] for i in range(0, len(ids), AT_ONCE))
