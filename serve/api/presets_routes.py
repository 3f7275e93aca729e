"""What presets and styles there are, as their author named them and as they come out for a served model."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.api import checks
from serve.api.deps import Door, TheDoor
from serve.api.docs import PRESET_PICTURE, PRESETS
from serve.api.hot_json import hot_json
from serve.errors import NotFound
from serve.presets.file import Preset, Style, Words
from serve.presets.pictures import picture_of

router = APIRouter(prefix="/v1", tags=["presets"])


@router.get("/presets", **PRESETS)
async def list_presets(request: Request, door: TheDoor, model: str | None = None) -> Response:
    """Of one model. The tag is weak: Gateways that show the same may have loaded it at different times."""
    shown = await asyncio.to_thread(_catalog_json, door, _asked(door, model))
    status = door.presets.status
    tag = f'W/"{hashlib.sha256(json.dumps([shown, status.error]).encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return JSONResponse(shown | {"version": hot_json(status)}, headers=headers)


@router.get("/presets/{preset}/picture", **PRESET_PICTURE)
async def preset_picture(preset: str, request: Request, door: TheDoor, model: str | None = None) -> Response:
    return await _picture(request, door, door.presets.value.of(_asked(door, model)).presets.get(preset))


@router.get("/styles/{style}/picture", **PRESET_PICTURE)
async def style_picture(style: str, request: Request, door: TheDoor, model: str | None = None) -> Response:
    return await _picture(request, door, door.presets.value.of(_asked(door, model)).styles.get(style))


def _asked(door: Door, model: str | None) -> str:
    """The first, where none is named. Raises ModelNotFound."""
    return checks.model(model, door.settings, door.presets.value.aliases)


async def _picture(request: Request, door: Door, entry: Style | None) -> Response:
    """Under the name that `GET /v1/presets` tells it is the same for ever."""
    found = await asyncio.to_thread(picture_of, entry, door.presets.path) if entry is not None else None
    if found is None:
        raise NotFound("there is no such picture", hint="GET /v1/presets tells picture_url where there is one")
    same = request.query_params.get("v") == found.tag
    caching = "private, max-age=31536000, immutable" if same else "private, no-cache"
    headers = {"ETag": f'"{found.tag}"', "Cache-Control": caching}
    if f'"{found.tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.data, media_type=found.media_type, headers=headers)


def _catalog_json(door: Door, model: str) -> dict[str, Any]:
    own, first = door.presets.value.of(model), door.settings.served_model_name
    return {
        "object": "list",
        "model": model,
        "data": [_preset_json(door, preset, model) for preset in own.presets.values()],
        "styles": [_style_json(door, style, "style", model) for style in own.styles.values()],
        "model_aliases": [
            {"name": alias.name, "preset": alias.preset, "style_preset": alias.style_preset}
            for alias in door.presets.value.aliases.values()
            if (alias.model or first) == model
        ],
    }


def _style_json(door: Door, style: Style, kind: str, model: str) -> dict[str, Any]:
    picture = picture_of(style, door.presets.path)
    of = "" if model == door.settings.served_model_name else f"&model={model}"
    return {
        "name": style.name,
        "object": kind,
        "title": _words(style.title),
        "description": _words(style.description),
        "prompt": style.prompt,
        "negative_prompt": style.negative_prompt or None,
        "picture_url": f"/v1/{kind}s/{style.name}/picture?v={picture.tag}{of}" if picture else None,
    }


def _preset_json(door: Door, preset: Preset, model: str) -> dict[str, Any]:
    """With the model's defaults and limits where the preset leaves them open."""
    settings = door.offer(model).settings
    limits, own = settings.limits, preset.limits
    default = settings.default_px
    return _style_json(door, preset, "preset", model) | {
        "size": preset.size or f"{default}x{default}",
        "num_inference_steps": preset.num_inference_steps or settings.default_steps,
        "guidance_scale": settings.default_guidance if preset.guidance_scale is None else preset.guidance_scale,
        "adapter": preset.adapter,
        "controlnet": preset.controlnet,
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
