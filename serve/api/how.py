"""How a picture is drawn beyond its size and steps: with which adapter, and guided in which way."""

from __future__ import annotations

from typing import TypedDict

from serve.adapter_settings import MAX_SCALE
from serve.api.generation import ImageBody
from serve.document import one_of, suggestion
from serve.errors import InvalidRequest
from serve.messages import ImageRequest
from serve.presets.choice import Choice
from serve.settings import Settings

FIELDS = ("adapter", "adapter_scale", "cfg_normalization", "cfg_truncation")


class How(TypedDict):
    """Those fields of an ImageRequest."""

    adapter: str | None
    adapter_scale: float
    cfg_normalization: float
    cfg_truncation: float


def how(body: ImageBody, choice: Choice, settings: Settings, guidance: float) -> How:
    """Explicit fields, else the preset's, else the service's. Raises InvalidRequest."""
    name = choice.adapter(body.adapter)
    normalization, truncation = choice.cfg(body.cfg_normalization, body.cfg_truncation)
    normalized = settings.default_cfg_normalization if normalization is None else normalization
    return How(
        adapter=name,
        adapter_scale=1.0 if name is None else _scale(name, body, choice, settings),
        cfg_normalization=float(normalized) if guidance else 0.0,
        cfg_truncation=1.0 if truncation is None or not guidance else float(truncation),
    )


def _scale(name: str, body: ImageBody, choice: Choice, settings: Settings) -> float:
    check_adapter(name, settings)
    asked = choice.adapter_scale(body.adapter_scale, name)
    return float(settings.adapters[name].scale if asked is None else asked)


def check_adapter(name: str, settings: Settings) -> None:
    """Raises InvalidRequest, which names those that there are."""
    if name in settings.adapters:
        return
    names = tuple(settings.adapters)
    hint = one_of(names, "GET /v1/models") if names else "leave adapter out: there are none, see docs/adapters.md"
    close = suggestion(name.strip().lower()[:64], names)
    raise InvalidRequest(f"unknown adapter {name[:64]!r}", param="adapter", hint=f"{close} {hint}" if close else hint)


def without_effect(body: ImageBody, request: ImageRequest) -> dict[str, bool]:
    """Which of the fields that were sent mean nothing beside the others."""
    return {
        "adapter_scale": body.adapter_scale is not None and request.adapter is None,
        "cfg_normalization": bool(body.cfg_normalization) and not request.guided,
        "cfg_truncation": body.cfg_truncation not in (None, 1.0) and not request.guided,
    }


def adapters_json(settings: Settings) -> list[dict[str, object]]:
    """What `GET /v1/models` says of them."""
    return [{"id": name, "scale": adapter.scale, "max_scale": MAX_SCALE} for name, adapter in settings.adapters.items()]
