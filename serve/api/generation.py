"""What a body may say of a picture: types and fixed bounds; order.py checks what depends on settings."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serve.adapter_settings import MAX_SCALE
from serve.controlnet_settings import MAX_CONTROL_SCALE
from serve.errors import InvalidRequest
from serve.messages import ImageFormat, Priority

MAX_SEED = 2**53 - 1
DAY_MS = 86_400_000

Quality = Literal["low", "medium", "high", "xhigh", "max"]


PICTURES = ("image", "mask", "control_image")  # fields that may hold files


class Body(BaseModel):
    """A field's description is also the hint of its error."""

    model_config = ConfigDict(strict=True)


def _as_number(value: Any) -> Any:
    """diffusers takes true for 1."""
    return float(value) if isinstance(value, bool) else value


Parsed = TypeVar("Parsed", bound=Body)


class ImageBody(Body):
    """What every way to ask for pictures has in common. Every field but `prompt` may be left out or null."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "a red fox on a yellow background", "seed": 1}})

    prompt: str = Field(description="what the picture shows: a non-blank string")
    model: str | None = Field(None, description="a model of GET /v1/models; left out: the served one")
    image: str | None = Field(
        None, description="a picture to begin with: a data URL, base64, or asset:ID of one of your pictures"
    )
    mask: str | None = Field(
        None, description="what of image is drawn anew, given alike: transparent, else white; as large as image"
    )
    strength: Annotated[float, Field(ge=0.01, le=1, allow_inf_nan=False)] | None = Field(
        None, description="how much of image is left to the prompt, 0.01 to 1; left out: 0.6, with a mask 1"
    )
    n: Annotated[int, Field(ge=1, le=10)] | None = Field(
        None, description="number of pictures, 1 to 10; picture i is drawn with seed + i"
    )
    size: str | None = Field(
        None, description='"auto" or "WIDTHxHEIGHT" in pixels, both multiples of 16, no side over three times the other'
    )
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        None, description='number of steps by name; "standard" is "medium", "hd" is "high"'
    )
    output_format: ImageFormat | None = Field(None, description='"png" (default), "jpeg" or "webp"')
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="quality of jpeg and webp, 0 to 100"
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(None, description='"auto" or "opaque"')
    user: str | None = Field(None, description="accepted, without effect")
    safety_identifier: str | None = Field(None, description="accepted, without effect")
    moderation: str | None = Field(None, description="accepted, without effect")
    style: str | None = Field(None, description="accepted, without effect")

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="an integer from 0 to 2^53-1, seed + n - 1 included; left out: a random one, returned"
    )
    negative_prompt: str | None = Field(
        None, description="what the picture should not show; needs guidance_scale over 0"
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=50)] | None = Field(
        None, description="denoising steps, 1 to 50; wins over quality"
    )
    guidance_scale: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] | None = Field(
        None, description="classifier-free guidance, 0 (default, none) to 20; doubles the work"
    )
    cfg_normalization: Annotated[float, BeforeValidator(_as_number), Field(ge=0, le=10, allow_inf_nan=False)] | None = (
        Field(
            None,
            description="bounds guidance to so many times the norm without it, 0 to 10; true is 1, 0 (default) is off",
        )
    )
    cfg_truncation: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="the part of the way, 0 to 1 (default, all of it), after which steps are not guided"
    )
    adapter: str | None = Field(None, description="an adapter (LoRA) of the model's in GET /v1/models")
    adapter_scale: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)] | None = Field(
        None, description="strength of the adapter, -4 to 4; left out: the adapter's own, usually 1"
    )
    controlnet: str | None = Field(None, description="a ControlNet of the model's in GET /v1/models")
    control_image: str | None = Field(
        None, description="what the controlnet follows: a data URL, base64, or asset:ID of one of your pictures"
    )
    controlnet_conditioning_scale: Annotated[float, Field(ge=0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)] | None = (
        Field(None, description="strength of the controlnet, 0 to 2; left out: the controlnet's own, usually 0.75")
    )
    preset: str | None = Field(None, description="a preset of GET /v1/presets: fills up what is left out")
    style_preset: str | None = Field(None, description="a style of GET /v1/presets: words around the prompt")
    priority: Priority | None = Field(None, description='"interactive", "standard" or "batch"')
    deadline_ms: Annotated[int, Field(ge=1, le=DAY_MS)] | None = Field(
        None, description="milliseconds after which the picture is not wanted any more, up to a day"
    )
    deterministic: bool | None = Field(
        None, description="draw alone, never in a batch: the same bytes whatever the load"
    )
    cache: Literal["auto", "skip"] | None = Field(
        None, description='"auto" (default): a picture of the same request may be reused; "skip": drawn anew'
    )


class GenerationBody(ImageBody):
    """The body of `POST /v1/images/generations`."""

    model_config = ConfigDict(title="ImageGeneration")

    response_format: Literal["b64_json", "url"] | None = Field(None, description='"b64_json" (default) or "url"')
    stream: bool | None = Field(None, description="answer with server-sent events; n must be 1")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="number of previews in a stream, 0 to 3"
    )


def parse(kind: type[Parsed], body: dict[str, Any]) -> tuple[Parsed, list[str]]:
    """The fields that are known, and the names of those that are not. Raises InvalidRequest for the first bad one."""
    try:
        return kind.model_validate(body), [name for name in body if name not in kind.model_fields]
    except ValidationError as error:
        raise _first_error(kind, error) from error


def _first_error(kind: type[Body], error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    param = str(first["loc"][0])
    hint = kind.model_fields[param].description
    if first["type"] == "missing":
        return InvalidRequest(f"{param} is required", param=param, hint=hint)
    wrong = first["msg"].removeprefix("Input ")
    return InvalidRequest(f"{param} {wrong}, got {_brief(first['input'])}", param=param, hint=hint)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 64 else f"{text[:61]}..."
