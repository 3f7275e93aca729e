"""KServe's probes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve.api.deps import TheDoor
from serve.api.kserve.asked import TheModel
from serve.api.kserve.described import MODEL_READY, PROBE
from serve.api.kserve.models import Model
from serve.messages import ServiceStatus

router = APIRouter(prefix="/v2", tags=["KServe v2"])

_RETRY = {"Retry-After": "1"}


def is_ready(model: Model, status: ServiceStatus) -> bool:
    own = status.models[model.served]
    return {"pipeline": own.ready, "text_encoder": own.text_encoders > 0, "denoiser": own.denoisers > 0}[model.kind]


@router.get("/health/live", summary="The process is alive")
async def live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready", **PROBE)
async def ready(door: TheDoor) -> JSONResponse:
    status = await door.service.status()
    if status.ready:
        return JSONResponse({"ready": True})
    return JSONResponse({"ready": False, "error": f"not ready: {status.phase}"}, 503, _RETRY)


@router.get("/models/{model}/ready", **MODEL_READY)
@router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(door: TheDoor, model: TheModel) -> JSONResponse:
    status = await door.service.status()
    if is_ready(model, status):
        return JSONResponse({"name": model.name, "ready": True})
    error = f"{model.name} is not ready: {status.models[model.served].phase}"
    return JSONResponse({"name": model.name, "ready": False, "error": error}, 503, _RETRY)
