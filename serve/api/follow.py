"""One job as its caller sees it: submitted, watched to its end, cancelled when the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

from serve.api.disconnect import detach
from serve.api.errors import from_info
from serve.errors import JobCanceled, NotFound, RequestTimeout
from serve.jobs.service import ImageService
from serve.messages import Canceled, Event, Expired, Failed, Submission, Terminal


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
        async with aclosing(_until(deadline, service.watch(submission.job_id))) as events:
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


async def _until(deadline: float, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    """The time-out is set anew for every event: between two of them another task may run this generator."""
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                event = await anext(events)
            yield event
    except StopAsyncIteration:
        return
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _raise_failure(event: Event) -> None:
    if isinstance(event, Failed | Expired):
        raise from_info(event.error)
    if isinstance(event, Canceled):
        raise JobCanceled("the job was cancelled by someone else", hint="submit it again if you still want it")


async def _cancel(service: ImageService, job_id: str, submitting: asyncio.Task[None]) -> None:
    """A job that is still on its way into the queue is cancelled once it is there."""
    await asyncio.wait({submitting})
    if submitting.exception() is None:
        with suppress(NotFound):
            await service.cancel(job_id)
