"""What the server is, what its models take and give, and how they are run."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter

from serve.api.deps import TheDoor
from serve.api.kserve.asked import TheModel
from serve.api.kserve.config import config_json
from serve.api.kserve.described import DESCRIBED, SERVER
from serve.api.kserve.models import VERSION, Model, TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "generate",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)

router = APIRouter(prefix="/v2", tags=["KServe v2"])


@router.get("", **SERVER)
@router.get("/", include_in_schema=False)
async def server() -> dict[str, Any]:
    return {"name": "zimage-serve", "version": version("zimage-serve"), "extensions": EXTENSIONS}


@router.get("/models/{model}/config", **DESCRIBED)
@router.get("/models/{model}/versions/{version}/config", include_in_schema=False)
async def model_config(door: TheDoor, model: TheModel) -> dict[str, Any]:
    return config_json(model, door.settings, await door.service.stats())


@router.get("/models/{model}", **DESCRIBED)
@router.get("/models/{model}/versions/{version}", include_in_schema=False)
async def model_metadata(model: TheModel) -> dict[str, Any]:
    return metadata_json(model)


def metadata_json(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": model.platform,
        "inputs": [_tensor_json(spec) for spec in model.inputs],
        "outputs": [_tensor_json(spec) for spec in model.outputs],
    }


def _tensor_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
