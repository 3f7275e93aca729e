"""Rows drawn together: they share their fate, and a time in which each must have begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from serve.api.follow import follow
from serve.errors import JobCanceled, NotFound, RequestTimeout, ZImageError
from serve.jobs.service import ImageService
from serve.messages import Event, JobStatus, Submission, Succeeded

_LOOK_EVERY_S = 0.02


async def draw(
    service: ImageService, rows: Sequence[Submission], request_s: float, timeout_s: float | None
) -> list[Succeeded]:
    """In the order of the rows. If one fails, or the caller leaves, the others are cancelled.

    Raises what `events` raises.
    """
    drawing = [asyncio.create_task(_done(service, row, request_s, timeout_s)) for row in rows]
    try:
        return await asyncio.gather(*drawing)
    finally:
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)


async def events(
    service: ImageService, row: Submission, request_s: float, timeout_s: float | None
) -> AsyncGenerator[Event, None]:
    """Up to Succeeded. Raises what `follow` does, and RequestTimeout when `timeout_s` passes before the first step."""
    dropped = asyncio.Event()
    dropping = asyncio.create_task(_drop_waiting(service, row.job_id, timeout_s, dropped)) if timeout_s else None
    try:
        async with aclosing(follow(service, row, request_s)) as following:
            async for event in following:
                yield event
    except JobCanceled:
        if dropped.is_set():
            hint = "send a longer timeout, or try again when the queue is shorter"
            raise RequestTimeout(f"the request waited for {timeout_s:g} s", param="timeout", hint=hint) from None
        raise
    finally:
        if dropping is not None:
            dropping.cancel()


async def _done(service: ImageService, row: Submission, request_s: float, timeout_s: float | None) -> Succeeded:
    async with aclosing(events(service, row, request_s, timeout_s)) as following:
        async for event in following:
            if isinstance(event, Succeeded):
                return event
    raise ZImageError("the job ended without a result")


async def _drop_waiting(service: ImageService, job_id: str, timeout_s: float, dropped: asyncio.Event) -> None:
    """What a cache answers never waits: its job has ended at once."""
    await asyncio.sleep(timeout_s)
    while True:
        with suppress(NotFound):  # still on its way to the queue
            waits = (await service.get(job_id)).status is JobStatus.QUEUED
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if waits:
        dropped.set()
        await service.cancel(job_id)
