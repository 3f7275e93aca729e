"""One picture: its bytes, its thumbnail and what is known of it, with the conditions and ranges of RFC 9110."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.deps import Door, TheDoor
from serve.api.docs import ASSET, ASSET_METADATA, DELETE_ASSET, THUMBNAIL
from serve.api.errors import error_response
from serve.api.job_json import rfc3339
from serve.assets.store import Asset, AssetInfo, no_asset
from serve.assets.thumbnails import etag
from serve.errors import RangeNotSatisfiable

router = APIRouter(prefix="/v1", tags=["assets"])

_RANGE = re.compile("bytes=([0-9]{0,15})-([0-9]{0,15})")


@router.get("/assets/{asset_id}", response_class=Response, **ASSET)
async def get_asset(
    asset_id: str, request: Request, door: TheDoor, expires: str | None = None, signature: str | None = None
) -> Response:
    await _check_may_see(door, asset_id, asset_id, expires, signature)
    info = await door.assets.stat(asset_id)
    headers = _headers(info, f'"{info.sha256}"', info.format) | {"Accept-Ranges": "bytes"}
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if getattr(request.state, "bodyless", False):
        return Response(media_type=info.media_type, headers=headers | {"Content-Length": str(info.bytes)})
    asset = await door.assets.read(asset_id)
    asked = _range(request, headers["ETag"], len(asset.data))
    if asked is None:
        return Response(asset.data, media_type=asset.media_type, headers=headers)
    return _part(request, asset, headers, *asked)


@router.get("/assets/{asset_id}/thumbnail", response_class=Response, **THUMBNAIL)
async def get_thumbnail(
    asset_id: str, request: Request, door: TheDoor, expires: str | None = None, signature: str | None = None
) -> Response:
    await _check_may_see(door, asset_id, f"{asset_id}/thumbnail", expires, signature)
    info = await door.assets.stat(asset_id)
    headers = _headers(info, etag(info.sha256), "thumbnail.webp")
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(await door.thumbnails.get(asset_id), media_type="image/webp", headers=headers)


@router.get("/assets/{asset_id}/metadata", **ASSET_METADATA)
async def get_metadata(asset_id: str, door: TheDoor) -> dict[str, Any]:
    await door.asset(asset_id)
    info = await door.assets.stat(asset_id)
    return {"object": "image.asset.metadata", **asdict(info), "created_at": rfc3339(info.created_at)}


@router.delete("/assets/{asset_id}", **DELETE_ASSET)
async def delete_asset(asset_id: str, door: TheDoor) -> Response:
    deletion = await door.service.delete_assets(door.whose, (asset_id,))
    if not deletion.deleted:
        raise no_asset(asset_id)
    return Response(status_code=204)


async def _check_may_see(door: Door, asset_id: str, signed: str, expires: str | None, signature: str | None) -> None:
    """By link whoever has one, without it the owner. Raises LinkRefused or NotFound."""
    if expires is None and signature is None:
        await door.asset(asset_id)
    else:
        door.links.verify(signed, expires, signature, time.time())


def _headers(info: AssetInfo, tag: str, suffix: str) -> dict[str, str]:
    return {
        "ETag": tag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'inline; filename="{info.asset_id}.{suffix}"',
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
