"""Your finished pictures: listed, searched, deleted by many."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from serve.api.body import read_object
from serve.api.deps import Door, TheDoor
from serve.api.docs import DELETE_ASSETS, DELETE_MANY_ASSETS, LIST_ASSETS
from serve.api.generation import Body, parse
from serve.api.job_body import began_with, how_drawn
from serve.api.job_json import rfc3339, urls_json
from serve.assets.metadata import alone
from serve.assets.store import ASSET_ID
from serve.errors import InvalidRequest
from serve.jobs.gallery import number_of
from serve.messages import AssetQuery, AssetView

MAX_PAGE = 200
MAX_IDS = 1000

router = APIRouter(prefix="/v1", tags=["assets"])


class DeletionBody(Body):
    """The body of `POST /v1/assets/delete`."""

    ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MAX_IDS)] = Field(
        description=f"ids of pictures, 1 to {MAX_IDS}"
    )


@router.get("/assets", **LIST_ASSETS)
async def list_assets(
    request: Request,
    door: TheDoor,
    q: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$", description="text in the prompt")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    cursor: str | None = None,
) -> dict[str, Any]:
    if cursor is not None and not ASSET_ID.fullmatch(cursor):
        raise InvalidRequest(f"no cursor {cursor[:64]!r}", param="cursor", hint="send the next_cursor of a page")
    views = await door.service.find_assets(AssetQuery(user=door.user, text=q, after=cursor, limit=limit + 1))
    page, has_more, base, now = views[:limit], len(views) > limit, door.base_url(request), time.time()
    return {
        "object": "list",
        "data": [asset_json(door, base, view, now) for view in page],
        "has_more": has_more,
        "next_cursor": page[-1].image.asset_id if has_more else None,
    }


@router.post("/assets/delete", **DELETE_MANY_ASSETS)
async def delete_many(request: Request, door: TheDoor) -> dict[str, Any]:
    body, _ = parse(DeletionBody, await read_object(request, door.settings.limits))
    deletion = await door.service.delete_assets(door.whose, tuple(body.ids))
    return {"object": "asset.deletion", "deleted": deletion.deleted, "unknown": deletion.unknown}


@router.delete("/assets", **DELETE_ASSETS)
async def delete_all(
    door: TheDoor,
    all: Annotated[bool, Query(description="must be true")] = False,
    confirm: Annotated[int | None, Query(ge=0, description="the number of your pictures")] = None,
) -> dict[str, Any]:
    if not all:
        hint = "send all=true and confirm=<the number of your pictures>; POST /v1/assets/delete takes ids"
        raise InvalidRequest("all is not true: this would delete all your pictures", param="all", hint=hint)
    deletion = await door.service.delete_all_assets(door.user, confirm)
    return {"object": "asset.deletion", "deleted_count": len(deletion.deleted)}


def asset_json(door: Door, base: str, view: AssetView, now: float) -> dict[str, Any]:
    """`now` is Unix time: links begin to age then."""
    image = view.image
    request = alone(view.request, number_of(image.asset_id))
    own = f"{base}/v1/assets/{image.asset_id}"
    return {
        "id": image.asset_id,
        "object": "image.asset",
        "job_id": view.job_id,
        "created_at": rfc3339(view.created_at),
        "model": request.model,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "seed": image.seed,
        **how_drawn(request),
        **began_with(request),
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "bytes": image.bytes,
        **urls_json(door, base, image, now),
        "metadata_url": f"{own}/metadata",
        "job_url": f"{base}/v1/jobs/{view.job_id}",
    }
