"""A model's configuration as Triton words it, with the values that are in force."""

from __future__ import annotations

from typing import Any

from serve.api.kserve.models import Model, TensorSpec, models
from serve.messages import PRIORITIES, ServiceStats
from serve.settings import Settings


def config_json(model: Model, service: Settings, stats: ServiceStats) -> dict[str, Any]:
    settings, tail = service.of(model.served), service.tail(model.served)
    common = {
        "name": model.name,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": _max_batch(model, settings),
        "input": [_input_json(spec) for spec in model.inputs],
        "output": [_output_json(spec) for spec in model.outputs],
    }
    return common | (_whole(settings, tail) if model.whole else _part(model, settings, stats))


def _max_batch(model: Model, settings: Settings) -> int:
    """Rows of one request, or of one execution."""
    largest = {
        "pipeline": settings.limits.max_n,
        "text_encoder": settings.scheduler.encode_batch,
        "denoiser": settings.scheduler.max_batch,
    }
    return largest[model.kind]


def _whole(settings: Settings, tail: str) -> dict[str, Any]:
    values = {
        "default_size_px": settings.default_px,
        "max_side_px": settings.cap_px,
        "default_steps": settings.default_steps,
        "max_steps": settings.limits.max_steps,
    }
    return {
        "platform": "ensemble",
        "ensemble_scheduling": {"step": [_step(part) for part in models(settings, tail)[1:]]},
        "parameters": {name: {"string_value": str(value)} for name, value in values.items()},
    }


def _step(part: Model) -> dict[str, Any]:
    return {
        "model_name": part.name,
        "model_version": -1,
        "input_map": {spec.name: spec.name for spec in part.inputs},
        "output_map": {spec.name: spec.name for spec in part.outputs},
    }


def _part(model: Model, settings: Settings, stats: ServiceStats) -> dict[str, Any]:
    return {
        "backend": "python",
        "dynamic_batching": {
            "max_queue_delay_microseconds": 0,
            "priority_levels": len(PRIORITIES),
            "default_priority_level": 1,
            "default_queue_policy": {
                "max_queue_size": settings.queue.max_depth,
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(settings.timeouts.request_s * 1e6),
                "allow_timeout_override": True,
            },
        },
        "instance_group": _instances(model, stats),
        "parameters": {"policy": {"string_value": settings.scheduler.policy}} if model.kind == "denoiser" else {},
    }


def _instances(model: Model, stats: ServiceStats) -> list[dict[str, Any]]:
    """A group for each kind of device that replicas are on now."""
    states = [replica.state for replica in stats.replicas]
    devices = [state.device for state in states if (state.role, state.model) == (model.kind, model.served)]
    kinds = ["KIND_CPU" if device.startswith("cpu") else "KIND_GPU" for device in devices]
    return [
        {"name": f"{model.name}_{at}", "kind": kind, "count": kinds.count(kind)}
        for at, kind in enumerate(sorted(set(kinds)))
    ]


def _input_json(spec: TensorSpec) -> dict[str, Any]:
    layout = {"format": "FORMAT_NONE", "is_shape_tensor": False, "allow_ragged_batch": False}
    return _output_json(spec) | layout | {"optional": spec.optional}


def _output_json(spec: TensorSpec) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.dims)}
