"""Pictures by signed link, with the conditions and ranges of RFC 9110."""

from __future__ import annotations

import re
import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.deps import TheDoor
from serve.api.docs import ASSET
from serve.api.errors import error_response
from serve.assets.store import Asset
from serve.errors import RangeNotSatisfiable

router = APIRouter(prefix="/v1", tags=["assets"])

_RANGE = re.compile("bytes=([0-9]{0,15})-([0-9]{0,15})")


@router.get("/assets/{asset_id}", response_class=Response, **ASSET)
async def get_asset(
    asset_id: str, request: Request, door: TheDoor, expires: str | None = None, signature: str | None = None
) -> Response:
    door.links.verify(asset_id, expires, signature, time.time())
    asset = await door.assets.read(asset_id)
    headers = _headers(asset)
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    asked = _range(request, headers["ETag"], len(asset.data))
    if asked is None:
        return Response(asset.data, media_type=asset.media_type, headers=headers)
    return _part(request, asset, headers, *asked)


def _headers(asset: Asset) -> dict[str, str]:
    return {
        "ETag": f'"{asset.info.sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{asset.info.asset_id}.{asset.info.format}"',
    }


def _matches(if_none_match: str | None, etag: str) -> bool:
    """The weak comparison: a `W/` makes no difference."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last. What is not one range of bytes is ignored, as RFC 9110 allows."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match[1] == match[2] == "" or request.headers.get("if-range", etag) != etag:
        return None
    if not match[1]:
        return max(size - int(match[2]), 0), size
    start, last = int(match[1]), int(match[2] or size)
    return None if start > last and match[2] else (start, min(last + 1, size))


def _part(request: Request, asset: Asset, headers: dict[str, str], start: int, stop: int) -> Response:
    size = len(asset.data)
    if start >= size:
        refusal = RangeNotSatisfiable(f"the picture has {size} bytes", param="Range", hint="ask for a range inside it")
        response = error_response(request, refusal)
        response.headers["Content-Range"] = f"bytes */{size}"
        return response
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(asset.data[start:stop], 206, headers, asset.media_type)
