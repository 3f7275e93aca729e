"""What the models have done since the start, by Triton's counting rules."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from serve.api.deps import TheDoor
from serve.api.kserve.asked import TheModel
from serve.api.kserve.described import DESCRIBED, STATISTICS
from serve.api.kserve.models import VERSION
from serve.metrics.statistics import Duration, ModelStatistics

router = APIRouter(prefix="/v2", tags=["KServe v2"])


@router.get("/models/stats", **STATISTICS)
async def all_stats(door: TheDoor) -> dict[str, Any]:
    models = await door.service.statistics()
    return {"model_stats": [_model_json(name, statistics) for name, statistics in models.items()]}


@router.get("/models/{model}/stats", **DESCRIBED)
@router.get("/models/{model}/versions/{version}/stats", include_in_schema=False)
async def model_stats(door: TheDoor, model: TheModel) -> dict[str, Any]:
    models = await door.service.statistics()
    return {"model_stats": [_model_json(model.name, models[model.name])]}


def _model_json(name: str, statistics: ModelStatistics) -> dict[str, Any]:
    return {
        "name": name,
        "version": VERSION,
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inferences,
        "execution_count": round(statistics.executions),
        "inference_stats": {
            "success": _duration_json(statistics.success),
            "fail": _duration_json(statistics.failed),
            "queue": _duration_json(statistics.queue),
            "compute_input": _duration_json(statistics.compute_input),
            "compute_infer": _duration_json(statistics.compute_infer),
            "compute_output": _duration_json(statistics.compute_output),
            "cache_hit": _duration_json(statistics.cache_hit),
            "cache_miss": _duration_json(statistics.cache_miss),
        },
        "response_stats": {},
        "batch_stats": [_batch_json(size, duration) for size, duration in sorted(statistics.batches.items())],
        "memory_usage": [],
    }


def _duration_json(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": round(duration.seconds * 1e9)}


def _batch_json(size: int, duration: Duration) -> dict[str, Any]:
    """Inputs come, and outputs go, with the pictures and not with the batches."""
    nothing = {"count": 0, "ns": 0}
    batch = {"compute_input": nothing, "compute_infer": _duration_json(duration), "compute_output": nothing}
    return {"batch_size": size, **batch}
