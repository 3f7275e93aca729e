"""`POST /v1/images/edits`: OpenAI's way to begin with a picture, as a form or as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from serve.api.accept import preferred_image
from serve.api.body import read_object
from serve.api.deps import TheDoor
from serve.api.docs_edits import EDIT
from serve.api.form import is_form, read_form
from serve.api.generation import PICTURES, GenerationBody, parse
from serve.api.input_images import Given, kept, opened
from serve.api.openai import answer
from serve.api.order import resolve
from serve.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_FILES = {"image": "image", "image[]": "image", "mask": "mask"}


class EditBody(GenerationBody):
    """The body of `POST /v1/images/edits`."""

    model_config = ConfigDict(title="ImageEdit")

    input_fidelity: str | None = Field(None, description="accepted, without effect: strength says it")


@router.post("/images/edits", **EDIT)
async def edit(request: Request, door: TheDoor) -> Response:
    limits, files = door.settings.limits, dict[str, bytes]()
    if is_form(request):
        fields, files = await read_form(request, limits, EditBody, _FILES)
    else:
        fields = _flat(await read_object(request, limits, (*PICTURES, "images")))
    body, unknown = parse(EditBody, fields)
    given = Given(files.get("image", body.image), files.get("mask", body.mask))
    if given.image is None:
        raise InvalidRequest("image is required", param="image", hint="send the picture to begin with")
    async with opened(door, given, alpha_is_mask=True) as source:
        order = resolve(door, body, unknown, preferred_image(request.headers.get("accept", "")), source)
        order = replace(order, submission=await kept(door, order.submission, source), events="image_edit")
    return await answer(request, door, order)


def _flat(body: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's JSON says `images: [{"image_url": ...}]` and `mask: {"image_url": ...}`; here they are text."""
    body = dict(body)
    if "images" in body:
        images = body.pop("images")
        if not isinstance(images, list) or len(images) != 1 or "image" in body:
            raise InvalidRequest(
                "images is not a list of one", param="images", hint="this model begins with one picture"
            )
        body["image"] = _url("images", images[0])
    if isinstance(body.get("mask"), dict):
        body["mask"] = _url("mask", body["mask"])
    return body


def _url(param: str, reference: Any) -> Any:
    if isinstance(reference, dict):
        if isinstance(reference.get("image_url"), str):
            return reference["image_url"]
        hint = 'send {"image_url": "data:image/png;base64,..."}; there is no file store here'
        raise InvalidRequest(f"{param} has no image_url", param=param, hint=hint)
    return reference
