"""What Hugging Face's InferenceClient sends where its model is a URL, answered with the picture.

`POST /hf/text-to-image` takes prompts; `POST /hf/models/{model}` takes prompts and pictures, as both come to one URL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.accept import RawBytes, preferred_image
from serve.api.body import read_object
from serve.api.deps import Door, TheDoor
from serve.api.disconnect import unless_gone
from serve.api.docs import TEXT_TO_IMAGE
from serve.api.docs_edits import HUGGING_FACE
from serve.api.generation import GenerationBody, parse
from serve.api.input_images import Given, kept, opened
from serve.api.openai import finished, raw_answer
from serve.api.order import resolve
from serve.errors import InvalidRequest

router = APIRouter(tags=["Hugging Face"])

_OWN = ("inputs", "parameters")
_ONE_PICTURE = ("n", "stream", "response_format")
_FROM_TEXT = ("image", "mask", "strength")  # of pictures that begin with another
_SIZES = ("width", "height", "target_size")


@router.post("/hf/text-to-image", **TEXT_TO_IMAGE)
async def text_to_image(request: Request, door: TheDoor) -> Response:
    content = await read_object(request, door.settings.limits)
    return await _drawn(request, door, content, _text(content), _FROM_TEXT)


@router.post("/hf/models/{model}", **HUGGING_FACE)
async def by_model(model: str, request: Request, door: TheDoor) -> Response:
    if request.headers.get("content-type", "").startswith("image/"):  # as the client sends one without parameters
        hint = 'send a prompt beside it: image_to_image(image, prompt="…")'
        raise InvalidRequest("there is a picture, but no prompt", param="prompt", hint=hint)
    content = await read_object(request, door.settings.limits, ("inputs",))
    if "prompt" not in _parameters(content):
        return await _drawn(request, door, content, _text(content) | {"model": model}, _FROM_TEXT)
    return await _drawn(request, door, content, _picture(content) | {"model": model})


async def _drawn(
    request: Request, door: Door, content: dict[str, Any], fields: dict[str, Any], without: Iterable[str] = ()
) -> Response:
    """`without` are fields of `content` that have no effect here."""
    body, unknown = parse(GenerationBody, fields)
    accepted = preferred_image(request.headers.get("accept", "")) or RawBytes(None)
    beside = [name for name in content if name not in _OWN]
    beside += [name for name in without if name in _parameters(content)]
    async with opened(door, Given.of(body)) as brought:
        order = resolve(door, body, unknown + beside, accepted, brought)
        order = replace(order, submission=await kept(door, order.submission, brought))
    await door.check_room(order.request.model)
    done = await unless_gone(request.receive, finished(door, order))
    return await raw_answer(door, order, done)


def _text(content: dict[str, Any]) -> dict[str, Any]:
    """Fields of `/v1/images/generations` where `inputs` is the prompt. Raises InvalidRequest."""
    fields = _fields(content, (*_FROM_TEXT, "target_size"))
    if "inputs" not in content:
        raise InvalidRequest("inputs is required", param="inputs", hint="it is the prompt")
    return fields | {"prompt": content["inputs"]}


def _picture(content: dict[str, Any]) -> dict[str, Any]:
    """The same where `inputs` is the picture, in base64, and the prompt is among the parameters."""
    fields = _fields(content, ("image",))
    if not isinstance(content.get("inputs"), str):
        raise InvalidRequest("inputs is no picture", param="inputs", hint="send the picture's file in base64")
    target = _parameters(content).get("target_size")
    if target is not None:
        if not isinstance(target, dict):
            hint = 'send {"width": 1024, "height": 768}'
            raise InvalidRequest("target_size is not an object", param="target_size", hint=hint)
        fields |= _size(target)
    return fields | {"image": content["inputs"]}


def _parameters(content: dict[str, Any]) -> dict[str, Any]:
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters is not an object", param="parameters", hint="send an object, or leave it out")
    return parameters


def _fields(content: dict[str, Any], without: Iterable[str]) -> dict[str, Any]:
    parameters, other = _parameters(content), {*without, *_ONE_PICTURE, *_SIZES}
    return {name: value for name, value in parameters.items() if name not in other} | _size(parameters)


def _size(sides: Mapping[str, Any]) -> dict[str, Any]:
    """Of `width` and `height`; nothing where neither is said."""
    width, height = sides.get("width"), sides.get("height")
    if width is None and height is None:
        return {}
    for name, side in (("width", width), ("height", height)):
        if type(side) is not int:
            raise InvalidRequest(f"{name} is not an integer", param=name, hint="send width and height, or neither")
    return {"size": f"{width}x{height}"}
