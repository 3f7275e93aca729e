"""For operators: hot files, the queue of everybody, and holding it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from serve.api.deps import Door, TheDoor
from serve.api.docs import ALL_JOBS, CONFIG, HOLD, RELOAD
from serve.api.hot_json import hot_json
from serve.api.job_json import job_json

MOST_JOBS = 1000

router = APIRouter(prefix="/v1/admin", tags=["admin"])


@router.get("/config", **CONFIG)
async def get_config(door: TheDoor) -> dict[str, Any]:
    return _config(door)


@router.post("/reload-config", **RELOAD)
async def reload_config(door: TheDoor) -> dict[str, Any]:
    changed = await door.hot.reload()
    return _config(door) | {"changed": changed}


@router.get("/queue", **ALL_JOBS)
async def get_queue(
    request: Request, door: TheDoor, limit: Annotated[int, Query(ge=1, le=MOST_JOBS)] = 100
) -> dict[str, Any]:
    views = await door.service.active(limit + 1)
    status = await door.service.status()
    base = door.base_url(request)
    return {
        "object": "list",
        "data": [job_json(door, base, view) | {"user": view.user} for view in views[:limit]],
        "has_more": len(views) > limit,
        "paused": status.paused,
    }


@router.post("/pause", **HOLD)
async def pause(door: TheDoor) -> dict[str, Any]:
    return await _hold(door, True)


@router.post("/resume", **HOLD)
async def resume(door: TheDoor) -> dict[str, Any]:
    return await _hold(door, False)


async def _hold(door: Door, paused: bool) -> dict[str, Any]:
    await door.service.hold(paused)
    status = await door.service.status()
    return {"object": "queue", "paused": status.paused, "depth": status.queued, "running": status.running}


def _config(door: Door) -> dict[str, Any]:
    return {"object": "config", "files": {file.name: hot_json(file.status) for file in door.hot}}
