"""What a request may ask for, as forms need to know it: limits, and what is taken where a field is left out."""

from __future__ import annotations

from typing import Any

from serve.settings import Settings
from serve.sizes import MAX_ASPECT, MIN_SIDE_PX

MULTIPLE_PX = 16


def limits_json(settings: Settings) -> dict[str, Any]:
    limits = settings.limits
    return {
        "limits": {
            "min_side_px": MIN_SIDE_PX,
            "max_side_px": settings.cap_px,
            "side_multiple_px": MULTIPLE_PX,
            "max_aspect": MAX_ASPECT,
            "max_n": limits.max_n,
            "max_steps": limits.max_steps,
            "max_prompt_tokens": limits.prompt_tokens,
            "max_prompt_characters": limits.prompt_characters,
        },
        "defaults": {
            "size": f"{settings.default_px}x{settings.default_px}",
            "num_inference_steps": settings.default_steps,
        },
    }
