"""`POST /hf/text-to-image`: what Hugging Face's InferenceClient sends to a URL, answered with the picture."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.accept import RawBytes, preferred_image
from serve.api.body import read_object
from serve.api.deps import TheDoor
from serve.api.disconnect import unless_gone
from serve.api.docs import TEXT_TO_IMAGE
from serve.api.generation import GenerationBody, parse
from serve.api.openai import finished, raw_answer
from serve.api.order import resolve
from serve.errors import InvalidRequest

router = APIRouter(tags=["Hugging Face"])

_OWN = ("inputs", "parameters")
_ONE_PICTURE = ("n", "stream", "response_format")
_FROM_TEXT = (
    "image",
    "mask",
    "strength",
    "controlnet",
    "control_image",
    "controlnet_conditioning_scale",
)  # need a file
_APART = (*_ONE_PICTURE, *_FROM_TEXT, "width", "height")


@router.post("/hf/text-to-image", **TEXT_TO_IMAGE)
async def text_to_image(request: Request, door: TheDoor) -> Response:
    content = await read_object(request, door.settings.limits)
    body, unknown = parse(GenerationBody, _fields(content))
    accepted = preferred_image(request.headers.get("accept", "")) or RawBytes(None)
    beside = [name for name in content if name not in _OWN]
    beside += [name for name in _FROM_TEXT if name in (content.get("parameters") or {})]
    order = resolve(door, body, unknown + beside, accepted)
    await door.check_room()
    done = await unless_gone(request.receive, finished(door, order))
    return await raw_answer(door, order, done)


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    """Those of `/v1/images/generations`, but for width and height. Raises InvalidRequest."""
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters is not an object", param="parameters", hint="send an object, or leave it out")
    if "inputs" not in content:
        raise InvalidRequest("inputs is required", param="inputs", hint="it is the prompt")
    fields = {name: value for name, value in parameters.items() if name not in _APART}
    sides = [parameters.get(side) for side in ("width", "height")]
    if sides != [None, None]:
        for name, side in zip(("width", "height"), sides, strict=True):
            if type(side) is not int:
                raise InvalidRequest(f"{name} is not an integer", param=name, hint="send width and height, or neither")
        fields["size"] = f"{sides[0]}x{sides[1]}"
    return fields | {"prompt": content["inputs"]}
