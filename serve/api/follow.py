"""One job as its caller sees it: submitted, watched to its end, cancelled when the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from serve.api.disconnect import detach
from serve.api.errors import from_info
from serve.errors import JobCanceled, NotFound, RequestTimeout
from serve.jobs.service import ImageService
from serve.messages import Canceled, Event, Expired, Failed, JobView, Submission, Terminal


async def follow(service: ImageService, submission: Submission, timeout_s: float) -> AsyncGenerator[Event, None]:
    """Events up to Succeeded. Leaving earlier, in whichever way, cancels the job.

    Raises what `submit` raises, the job's own error, JobCanceled, or RequestTimeout after `timeout_s`.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    submitting = detach(service.submit(submission))
    ended = False
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.wait({submitting})
        submitting.result()
        async with aclosing(_until(deadline, service, submission.job_id)) as events:
            async for event in events:
                ended = isinstance(event, Terminal)
                _raise_failure(event)
                yield event
    except TimeoutError as error:
        raise RequestTimeout(
            f"no picture within {timeout_s:g} s; the job was cancelled", hint="try again when the queue is shorter"
        ) from error
    finally:
        if not ended:
            detach(_cancel(service, submission.job_id, submitting))


async def follow_submitted(service: ImageService, job_id: str, timeout_s: float) -> AsyncGenerator[Event, None]:
    """As `follow`, for a job that others may wait for: leaving it, or a time-out, does not end it."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        async with aclosing(_until(deadline, service, job_id)) as events:
            async for event in events:
                _raise_failure(event)
                yield event
    except TimeoutError as error:
        raise RequestTimeout(
            f"no picture within {timeout_s:g} s; the job goes on", hint="send it again with the same Idempotency-Key"
        ) from error


async def submitted(service: ImageService, submission: Submission) -> str:
    """The job's id, an earlier one's where the idempotency key was used before. Goes on when the caller leaves."""
    return await asyncio.shield(detach(service.submit(submission)))


async def settled(service: ImageService, view: JobView, within_s: float) -> JobView:
    """The job when it has ended, or as it is after `within_s` seconds."""
    if view.status.terminal:
        return view
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s), watching(service, view.id, view.seq) as events:
            async for _ in events:
                pass
    return await service.get(view.id)


@asynccontextmanager
async def watching(service: ImageService, job_id: str, after: int = 0) -> AsyncGenerator[AsyncIterator[Event], None]:
    """The service's events; nobody watches any more when the block is left."""
    events = service.watch(job_id, after)
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _until(deadline: float, service: ImageService, job_id: str) -> AsyncGenerator[Event, None]:
    """The time-out is set anew for every event: between two of them another task may run this generator."""
    async with watching(service, job_id) as events:
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
                yield event
        except StopAsyncIteration:
            return


def _raise_failure(event: Event) -> None:
    if isinstance(event, Failed | Expired):
        raise from_info(event.error)
    if isinstance(event, Canceled):
        raise JobCanceled("the job was cancelled by someone else", hint="submit it again if you still want it")


async def _cancel(service: ImageService, job_id: str, submitting: asyncio.Task[str]) -> None:
    """A job that is still on its way into the queue is cancelled once it is there."""
    await asyncio.wait({submitting})
    if submitting.exception() is None:
        with suppress(NotFound):
            await service.cancel(job_id)
