"""The pictures in the job store that may answer later requests."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.record import images_of
from serve.jobs.tables import jobs
from serve.messages import JobStatus, StoredImage


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRow:
    cache_key: str
    user: str
    completed_at: float
    images: tuple[StoredImage, ...]


async def cached_rows(connection: AsyncConnection, since: float, max_bytes: int) -> list[CachedRow]:
    """Of jobs that ended since then, newest first, as many as their pictures fit into so many bytes."""
    columns = (jobs.c.cache_key, jobs.c.user, jobs.c.completed_at, jobs.c.images)
    found = select(*columns).where(
        jobs.c.cache_key.is_not(None), jobs.c.status == str(JobStatus.SUCCEEDED), jobs.c.completed_at >= since
    )
    rows: list[CachedRow] = []
    async with connection.stream(found.order_by(jobs.c.completed_at.desc())) as result:
        async for key, user, completed_at, images in result:
            row = CachedRow(cache_key=key, user=user, completed_at=completed_at, images=images_of(images))
            max_bytes -= sum(image.bytes for image in row.images)
            if max_bytes < 0:
                break
            rows.append(row)
    return rows
