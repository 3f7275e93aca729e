"""`POST /v1/images/edits`: OpenAI's way to begin with a picture, as a form or as JSON."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.accept import preferred_image
from serve.api.body import read_object
from serve.api.deps import TheDoor
from serve.api.docs_edits import EDIT
from serve.api.edit_body import EditBody, flat
from serve.api.form import is_form, read_form
from serve.api.generation import PICTURES, parse
from serve.api.input_images import Given, kept, opened
from serve.api.openai import answer
from serve.api.order import resolve
from serve.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_FILES = {"image": "image", "image[]": "image", "mask": "mask", "control_image": "control_image"}


@router.post("/images/edits", **EDIT)
async def edit(request: Request, door: TheDoor) -> Response:
    limits, files = door.settings.limits, dict[str, bytes]()
    if is_form(request):
        fields, files = await read_form(request, limits, EditBody, _FILES)
    else:
        fields = flat(await read_object(request, limits, (*PICTURES, "images")))
    body, unknown = parse(EditBody, fields)
    given = Given(*(files.get(name, getattr(body, name)) for name in PICTURES))
    if given.image is None:
        raise InvalidRequest("image is required", param="image", hint="send the picture to begin with")
    async with opened(door, given, alpha_is_mask=True) as brought:
        order = resolve(door, body, unknown, preferred_image(request.headers.get("accept", "")), brought)
        order = replace(order, submission=await kept(door, order.submission, brought), events="image_edit")
    return await answer(request, door, order)
