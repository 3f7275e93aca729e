"""Probes for load balancers and orchestrators."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

from serve.api.deps import TheDoor
from serve.api.docs import METRICS, STATS
from serve.api.stats_json import model_json, stats_json
from serve.messages import ServiceStatus

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="The process is alive")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Pictures can be drawn", responses={503: {"description": "not yet: says why"}})
async def readyz(door: TheDoor) -> JSONResponse:
    status = await door.service.status()
    headers = {} if status.ready else {"Retry-After": str(max(math.ceil(status.eta_seconds or 0), 1))}
    return JSONResponse(_shown(status), 200 if status.ready else 503, headers)


@router.get("/metrics", response_class=PlainTextResponse, **METRICS)
async def metrics(door: TheDoor) -> PlainTextResponse:
    return PlainTextResponse(await door.service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/stats", **STATS)
async def stats(door: TheDoor) -> dict[str, Any]:
    return stats_json(await door.service.stats(), [file.status for file in door.hot])


def _shown(status: ServiceStatus) -> dict[str, Any]:
    return {
        "ready": status.ready,
        "paused": status.paused,
        "phase": status.phase,
        "progress": status.fraction,
        "eta_seconds": status.eta_seconds,
        "queued": status.queued,
        "running": status.running,
        "denoisers": status.denoisers,
        "text_encoders": status.text_encoders,
        "warnings": status.warnings,
        "models": {name: model_json(of) for name, of in status.models.items()},
    }
