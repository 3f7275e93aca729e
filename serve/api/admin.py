"""For operators: hot files, the queue of everybody, and holding it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from serve.api.deps import Door, TheDoor
from serve.api.docs import CONFIG, RELOAD
from serve.api.hot_json import hot_json

router = APIRouter(prefix="/v1/admin", tags=["admin"])


@router.get("/config", **CONFIG)
async def get_config(door: TheDoor) -> dict[str, Any]:
    return _config(door)


@router.post("/reload-config", **RELOAD)
async def reload_config(door: TheDoor) -> dict[str, Any]:
    changed = await door.hot.reload()
    return _config(door) | {"changed": changed}


def _config(door: Door) -> dict[str, Any]:
    return {"object": "config", "files": {file.name: hot_json(file.status) for file in door.hot}}
