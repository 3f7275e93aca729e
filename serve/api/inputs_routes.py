"""The pictures that jobs began with, as they were used."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.deps import TheDoor
from serve.api.docs_edits import INPUT_PICTURE
from serve.api.input_images import own_input

router = APIRouter(prefix="/v1", tags=["assets"])


@router.get("/inputs/{input_id}", response_class=Response, **INPUT_PICTURE)
async def get_input(input_id: str, request: Request, door: TheDoor) -> Response:
    data = await own_input(door, input_id, "input_id")
    headers = {"ETag": f'"{input_id}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/png", headers=headers)
