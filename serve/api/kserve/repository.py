"""The repository has the models that were loaded at the start: they are listed, and neither loaded nor unloaded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serve.api.body import parse_object
from serve.api.deps import TheDoor
from serve.api.kserve.body import read_body
from serve.api.kserve.described import INDEX, LOAD
from serve.api.kserve.health import is_ready
from serve.api.kserve.models import VERSION, Model, all_models
from serve.errors import InvalidRequest, Unavailable
from serve.messages import ServiceStatus

router = APIRouter(prefix="/v2/repository", tags=["KServe v2"])


@router.post("/index", **INDEX)
async def index(request: Request, door: TheDoor) -> list[dict[str, str]]:
    body = await read_body(request, door.settings.limits)
    only_ready = parse_object(body, door.settings.limits).get("ready", False) if body.strip() else False
    if not isinstance(only_ready, bool):
        raise InvalidRequest("ready is not a boolean", param="ready")
    status = await door.service.status()
    listed = [(model, is_ready(model, status)) for model in all_models(door.settings)]
    return [_entry(model, status, ready) for model, ready in listed if ready or not only_ready]


@router.post("/models/{model}/load", **LOAD)
@router.post("/models/{model}/unload", **LOAD)
async def load(model: str) -> None:
    """Triton says the same of every name while explicit control is off."""
    del model
    raise Unavailable("explicit model load / unload is not allowed")


def _entry(model: Model, status: ServiceStatus, ready: bool) -> dict[str, Any]:
    known = {"name": model.name, "version": VERSION}
    reason = "" if ready else status.models[model.served].phase
    return known | {"state": "READY" if ready else "LOADING", "reason": reason}
