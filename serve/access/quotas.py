"""What an answer says of its caller's quota."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.quota import Window


def headers(windows: Sequence[Window]) -> dict[str, str]:
    """The fields of the IETF draft for every limit, and OpenAI's for the tightest one of images."""
    if not windows:
        return {}
    of_images = [window for window in windows if window.of_images]
    said = {
        "RateLimit-Policy": ", ".join(f'"{window.name}";q={window.limit};w={window.span_s}' for window in windows),
        "RateLimit": ", ".join(f'"{window.name}";r={window.remaining};t={window.reset_s}' for window in windows),
    }
    if of_images:
        tightest = min(of_images, key=lambda window: (window.remaining, -window.reset_s))
        said |= {
            "x-ratelimit-limit-images": str(tightest.limit),
            "x-ratelimit-remaining-images": str(tightest.remaining),
            "x-ratelimit-reset-images": f"{tightest.reset_s}s",
        }
    return said


def shown(windows: Sequence[Window]) -> list[dict[str, Any]]:
    return [
        {
            "name": window.name,
            "limit": window.limit,
            "remaining": window.remaining,
            "reset_seconds": window.reset_s,
        }
        for window in windows
    ]
