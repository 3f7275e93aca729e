"""What presets and styles there are, as their author named them and as they come out for the served model."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.api.deps import Door, TheDoor
from serve.api.docs import PRESETS
from serve.api.hot_json import hot_json
from serve.presets.file import Preset, Style, Words

router = APIRouter(prefix="/v1", tags=["presets"])


@router.get("/presets", **PRESETS)
async def list_presets(request: Request, door: TheDoor) -> Response:
    """The tag is weak: Gateways that show the same may have loaded it at different times."""
    catalog, status = door.presets.value, door.presets.status
    shown = {
        "object": "list",
        "data": [_preset_json(door, preset) for preset in catalog.presets.values()],
        "styles": [_style_json(style, "style") for style in catalog.styles.values()],
        "model_aliases": [
            {"name": alias.name, "preset": alias.preset, "style_preset": alias.style_preset}
            for alias in catalog.aliases.values()
        ],
    }
    tag = f'W/"{hashlib.sha256(json.dumps([shown, status.error]).encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return JSONResponse(shown | {"version": hot_json(status)}, headers=headers)


def _style_json(style: Style, kind: str) -> dict[str, Any]:
    return {
        "name": style.name,
        "object": kind,
        "title": _words(style.title),
        "description": _words(style.description),
        "prompt": style.prompt,
        "negative_prompt": style.negative_prompt or None,
    }


def _preset_json(door: Door, preset: Preset) -> dict[str, Any]:
    """With the service's defaults and limits where the preset leaves them open."""
    settings = door.settings
    limits, own = settings.limits, preset.limits
    default = settings.default_px
    return _style_json(preset, "preset") | {
        "size": preset.size or f"{default}x{default}",
        "num_inference_steps": preset.num_inference_steps or settings.default_steps,
        "guidance_scale": settings.default_guidance if preset.guidance_scale is None else preset.guidance_scale,
        "adapter": preset.adapter,
        "quality": {**settings.quality_steps, **preset.quality},
        "limits": {
            "max_n": min(limits.max_n, own.max_n or limits.max_n),
            "max_side_px": min(settings.cap_px, own.max_side_px or settings.cap_px),
            "max_steps": min(limits.max_steps, own.max_steps or limits.max_steps),
        },
        "locked": list(preset.locked),
    }


def _words(words: Words | None) -> dict[str, str] | None:
    return None if words is None else {"en": words.en, "zh": words.zh}
