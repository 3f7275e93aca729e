"""A job's events as clients get them, by server-sent events here and by WebSocket in ws.py."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from serve.api.answers import b64, encode_data
from serve.api.deps import Door, TheDoor
from serve.api.docs import JOB_EVENTS
from serve.api.errors import error_body
from serve.api.follow import watching
from serve.api.job_json import error_json, job_json, progress_json, queue_json, result_json, rfc3339, timings_json
from serve.api.sse import EventStream, with_pings
from serve.errors import InvalidRequest
from serve.jobs.service import ImageService
from serve.messages import (
    Canceled,
    Canceling,
    Event,
    Expired,
    Failed,
    JobStatus,
    JobView,
    Preview,
    Progress,
    Queued,
    Started,
    Succeeded,
    Terminal,
)

PING_EVERY_S = 15.0

router = APIRouter(prefix="/v1", tags=["jobs"])

_STATUS_AFTER: dict[type[Event], JobStatus] = {
    Queued: JobStatus.QUEUED,
    Started: JobStatus.RUNNING,
    Canceling: JobStatus.CANCELING,
    Succeeded: JobStatus.SUCCEEDED,
    Failed: JobStatus.FAILED,
    Canceled: JobStatus.CANCELED,
    Expired: JobStatus.EXPIRED,
}


@router.get("/jobs/{job_id}/events", response_class=Response, **JOB_EVENTS)
async def job_events(
    job_id: str, request: Request, door: TheDoor, after: Annotated[int | None, Query(ge=0)] = None
) -> Response:
    view, after = await door.job(job_id), _last_event_id(request, after)
    if view.status.terminal and after is not None and after >= view.seq:
        return Response(status_code=204)  # the one answer that keeps an EventSource from coming back
    return EventStream(with_pings(_chunks(request, door, view, after), PING_EVERY_S), {})


async def states(service: ImageService, view: JobView, after: int | None) -> AsyncGenerator[JobView | Event, None]:
    """The job as it is, then what happens to it, up to its end.

    Who has seen everything up to seq `after` gets what was missed instead of a snapshot, unless the job has ended.
    """
    snapshot = after is None or after > view.seq or view.status.terminal
    if snapshot:
        yield view
    if view.status.terminal:
        return
    last = view.seq if snapshot or after is None else after
    async with watching(service, view.id, last) as events:
        async for event in events:
            if event.seq > last or isinstance(event, Terminal):
                last = event.seq
                yield event


async def event_json(door: Door, base: str, view: JobView, state: JobView | Event) -> dict[str, Any] | None:
    """`data` holds the fields of the job that changed, but a preview's. None for a preview that is gone."""
    if isinstance(state, JobView):
        return _event(_type(state.status), state.id, state.seq, time.time(), job_json(door, base, state))
    if isinstance(state, Preview):
        picture = await door.assets.read_preview(state.key)
        if picture is None:
            return None
        data = {"image": state.image, "index": state.index, "format": view.request.output_format}
        return _event("job.preview", state.job_id, state.seq, state.at, data | {"b64_json": b64(picture)})
    if isinstance(state, Progress):
        progress = {"progress": progress_json(state.step, state.steps)}
        return _event("job.progress", state.job_id, state.seq, state.at, progress)
    status = _STATUS_AFTER[type(state)]
    moved = isinstance(state, Queued) and state.seq > 1
    changes = {"status": status.value, "queue": None} | _details(door, base, state)
    return _event("job.position" if moved else _type(status), state.job_id, state.seq, state.at, changes)


def _event(kind: str, job_id: str, seq: int, at: float, data: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "job_id": job_id, "seq": seq, "at": rfc3339(at), "data": data}


def _type(status: JobStatus) -> str:
    return "job.started" if status is JobStatus.RUNNING else f"job.{status.value}"


def _details(door: Door, base: str, event: Event) -> dict[str, Any]:
    """What a change of status brings with it."""
    ended = {"completed_at": rfc3339(event.at)} if isinstance(event, Terminal) else {}
    match event:
        case Queued():
            return {"queue": queue_json(event.position, event.length, event.eta_seconds)}
        case Started():
            return {"started_at": rfc3339(event.at)}
        case Succeeded():
            result = {"result": result_json(door, base, event), "timings": timings_json(event.timings)}
            return ended | result
        case Failed() | Expired():
            return ended | {"error": error_json(event.error)}
    return ended


def _last_event_id(request: Request, after: int | None) -> int | None:
    """A client that comes back sends the header; it knows more than the URL that it was given at first."""
    sent = request.headers.get("last-event-id")
    if not sent:
        return after
    if not (sent.isascii() and sent.isdecimal()) or len(sent) > 15:
        hint = "send the id of the last event, or leave it out"
        raise InvalidRequest(f"Last-Event-ID is {sent[:64]!r}, not a number", param="Last-Event-ID", hint=hint)
    return int(sent)


async def _chunks(request: Request, door: Door, view: JobView, after: int | None) -> AsyncGenerator[bytes, None]:
    """The status is sent: an error is the stream's last event."""
    base = door.base_url(request)
    try:
        async with aclosing(states(door.service, view, after)) as following:
            async for state in following:
                event = await event_json(door, base, view, state)
                if event is not None:
                    yield f"id: {event['seq']}\nevent: {event['type']}\n".encode() + encode_data(event)
    except Exception as error:
        yield encode_data({"error": error_body(request, error)})
