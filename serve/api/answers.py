"""A finished job in OpenAI's shapes: JSON, raw bytes, server-sent events. Nothing here waits."""

from __future__ import annotations

import base64
import json
from typing import Any

from serve.api.job_json import partial_json
from serve.api.order import Order
from serve.assets.store import Asset
from serve.messages import CacheUse, StoredImage, Succeeded

MAX_IGNORED_CHARACTERS = 512


def headers(order: Order, cache: CacheUse) -> dict[str, str]:
    known = {"X-Job-Id": order.submission.job_id, "X-Seed": str(order.request.seed), "X-Cache": cache}
    return known | ignored_and_replayed(order.ignored, order.replayed)


def ignored_and_replayed(ignored: tuple[str, ...], replayed: bool) -> dict[str, str]:
    headers = {"X-Ignored-Parameters": _header_list(ignored)} if ignored else {}
    return headers | {"Idempotency-Replayed": "true"} if replayed else headers


def image_json(order: Order, image: StoredImage, picture: dict[str, str]) -> dict[str, Any]:
    return {**picture, "seed": image.seed, "asset_id": image.asset_id, "job_id": order.submission.job_id}


def answer_json(order: Order, images: list[dict[str, Any]], done: Succeeded) -> dict[str, Any]:
    output = len(images) * order.request.image_tokens
    details = {"output_tokens_details": {"image_tokens": output, "text_tokens": 0}}
    partial = partial_json(done.errors) if done.errors else {}
    usage = _usage(order, output) | details
    return {"created": int(done.at), "data": images, **_described(order), "usage": usage, **partial}


def partial_event(order: Order, index: int, data: bytes, at: float) -> dict[str, Any]:
    return _event(order, "partial_image", data, at) | {"partial_image_index": index}


def completed_event(order: Order, asset: Asset, image: dict[str, Any], at: float) -> dict[str, Any]:
    return image | _event(order, "completed", asset.data, at) | {"usage": _usage(order, order.request.image_tokens)}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def encode_event(event: dict[str, Any]) -> bytes:
    """Without `id:`, `retry:` and comments, which OpenAI's client does not survive."""
    return f"event: {event['type']}\n".encode() + encode_data(event)


def encode_data(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _event(order: Order, name: str, data: bytes, at: float) -> dict[str, Any]:
    type_and_time = {"type": f"{order.events}.{name}", "created_at": int(at)}
    return {**type_and_time, "b64_json": b64(data), **_described(order)}


def _described(order: Order) -> dict[str, str]:
    return {
        "background": "opaque",
        "output_format": order.request.output_format,
        "quality": order.quality,
        "size": order.size,
    }


def _usage(order: Order, output: int) -> dict[str, Any]:
    image = 0 if order.request.image is None else order.request.image_tokens
    return {
        "input_tokens": order.input_tokens + image,
        "input_tokens_details": {"text_tokens": order.input_tokens, "image_tokens": image},
        "output_tokens": output,
        "total_tokens": order.input_tokens + image + output,
    }


def _header_list(names: tuple[str, ...]) -> str:
    """Names come from the client: what a header cannot carry, or would read as two names, becomes a question mark."""
    safe = ["".join(c if "!" <= c <= "~" and c != "," else "?" for c in name[:64]) for name in names]
    text = ", ".join(safe)
    return text if len(text) <= MAX_IGNORED_CHARACTERS else f"{text[:MAX_IGNORED_CHARACTERS]}..."
