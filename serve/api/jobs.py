"""Jobs that outlive the connection they were submitted on."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from serve.api.answers import ignored_and_replayed
from serve.api.body import read_object, read_object_if_any
from serve.api.deps import Door, TheDoor, is_job_id
from serve.api.disconnect import detach, unless_gone
from serve.api.docs import CANCEL_JOB, CREATE_JOB, DELETE_JOB, GET_JOB, LIST_JOBS, QUEUE, RERUN_JOB
from serve.api.follow import settled, submitted
from serve.api.generation import PICTURES, parse
from serve.api.idempotency import keyed
from serve.api.input_images import Given, kept, opened
from serve.api.job_body import JobBody, rerun_body, resolve_job
from serve.api.job_json import job_json
from serve.api.stats_json import model_json
from serve.errors import InvalidRequest
from serve.messages import JobQuery, JobStatus

MAX_WAIT_S = 60
MAX_PAGE = 200
ACTIVE = frozenset(status for status in JobStatus if not status.terminal)

router = APIRouter(prefix="/v1", tags=["jobs"])

_log = structlog.get_logger(__name__)
_PREFERRED_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})\b", re.IGNORECASE)


@router.post("/jobs", **CREATE_JOB)
async def create_job(request: Request, door: TheDoor) -> Response:
    return await _create(request, door, await read_object(request, door.settings.limits, PICTURES))


@router.post("/jobs/{job_id}/rerun", **RERUN_JOB)
async def rerun_job(job_id: str, request: Request, door: TheDoor) -> Response:
    parent = await door.job(job_id)
    overrides = await read_object_if_any(request, door.settings.limits, PICTURES)
    return await _create(request, door, rerun_body(parent, overrides), parent.id)


@router.get("/jobs", **LIST_JOBS)
async def list_jobs(
    request: Request,
    door: TheDoor,
    status: Annotated[list[str] | None, Query(description="one or more, separated by commas")] = None,
    q: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$", description="text in the prompt")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    cursor: str | None = None,
    user: Annotated[str | None, Query(max_length=300, description="admins: somebody, or * for all")] = None,
) -> dict[str, Any]:
    if cursor is not None and not is_job_id(cursor):
        raise InvalidRequest(f"no cursor {cursor[:64]!r}", param="cursor", hint="send the next_cursor of a page")
    query = JobQuery(user=door.owner(user), statuses=_statuses(status or []), text=q, before=cursor, limit=limit + 1)
    views = await door.service.find(query)
    page, has_more, base = views[:limit], len(views) > limit, door.base_url(request)
    return {
        "object": "list",
        "data": [job_json(door, base, view) for view in page],
        "has_more": has_more,
        "next_cursor": page[-1].id if has_more else None,
    }


@router.get("/jobs/{job_id}", **GET_JOB)
async def get_job(
    job_id: str, request: Request, door: TheDoor, wait: Annotated[int, Query(ge=0, le=MAX_WAIT_S)] = 0
) -> dict[str, Any]:
    view = await door.job(job_id)
    if wait:
        view = await unless_gone(request.receive, settled(door.service, view, wait))
    return job_json(door, door.base_url(request), view)


@router.post("/jobs/{job_id}/cancel", **CANCEL_JOB)
async def cancel_job(job_id: str, request: Request, door: TheDoor) -> Response:
    await door.job(job_id)
    await door.service.cancel(job_id)
    view = await door.service.get(job_id)
    status = 202 if view.status is JobStatus.CANCELING else 200
    return JSONResponse(job_json(door, door.base_url(request), view), status)


@router.delete("/jobs/{job_id}", **DELETE_JOB)
async def delete_job(job_id: str, door: TheDoor) -> Response:
    """Once begun it is done to the end, whoever leaves: a picture without its record would stay for ever."""
    await door.job(job_id)
    await asyncio.shield(detach(door.service.delete(job_id)))
    return Response(status_code=204)


@router.get("/queue", **QUEUE)
async def get_queue(request: Request, door: TheDoor) -> dict[str, Any]:
    status = await door.service.status()
    mine = await door.service.find(JobQuery(user=door.user, statuses=ACTIVE, limit=MAX_PAGE))
    base = door.base_url(request)
    return {
        "object": "queue",
        "depth": status.queued,
        "running": status.running,
        "paused": status.paused,
        "replicas": status.denoisers,
        "estimated_wait_seconds": status.eta_seconds,
        "models": {name: model_json(of) for name, of in status.models.items()},
        "my_jobs": [job_json(door, base, view) for view in mine],
    }


async def _create(request: Request, door: Door, body: dict[str, Any], parent_id: str | None = None) -> Response:
    asked, unknown = parse(JobBody, body)
    async with opened(door, Given.of(asked)) as brought:
        submission, resolved = resolve_job(door, asked, unknown, parent_id, brought)
        submission = await kept(door, submission, brought)
    submission = keyed(submission, request.headers, asked.seed)
    await door.check_room(submission.request.model)
    job_id = await submitted(door.service, submission)
    replayed = job_id != submission.job_id
    _log.info("job", job_id=job_id, parent_id=parent_id, replayed=replayed)
    wait = _preferred_wait(request)
    view = await unless_gone(request.receive, settled(door.service, await door.service.get(job_id), wait))
    shown = job_json(door, door.base_url(request), view)
    headers = {"Location": shown["urls"]["self"], **ignored_and_replayed(resolved.ignored, replayed)}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    return JSONResponse(shown, 200 if replayed or (wait and view.status.terminal) else 202, headers)


def _preferred_wait(request: Request) -> int:
    """Seconds. A preference (RFC 7240) is never an error: the answer says how much of it was followed."""
    match = _PREFERRED_WAIT.search(request.headers.get("prefer", ""))
    return min(int(match[1]), MAX_WAIT_S) if match else 0


def _statuses(asked: list[str]) -> frozenset[JobStatus]:
    names = {name.strip() for text in asked for name in text.split(",")} - {""}
    unknown = sorted(names - set(JobStatus))
    if unknown:
        known = ", ".join(JobStatus)
        raise InvalidRequest(f"no status {unknown[0][:64]!r}", param="status", hint=f"send one or more of: {known}")
    return frozenset(map(JobStatus, names))
