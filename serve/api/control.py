"""Which ControlNet a picture is drawn with, and how strongly; the control picture itself is in input_images.py."""

from __future__ import annotations

from typing import TypedDict

from serve.api.generation import ImageBody
from serve.controlnet_settings import MAX_CONTROL_SCALE
from serve.document import one_of, suggestion
from serve.errors import ControlNetNotFound, InvalidRequest
from serve.inputs import Brought
from serve.messages import ImageRequest
from serve.presets.choice import Choice
from serve.settings import Settings

FIELDS = ("controlnet", "controlnet_conditioning_scale")


class Control(TypedDict):
    """Those fields of an ImageRequest."""

    controlnet: str | None
    controlnet_conditioning_scale: float


def control(body: ImageBody, brought: Brought, choice: Choice, settings: Settings) -> Control:
    """What is asked for; a preset's own is for a picture that is brought. Raises InvalidRequest, ControlNetNotFound."""
    name = choice.controlnet(body.controlnet)
    if body.controlnet is None and brought.control is None:
        return Control(controlnet=None, controlnet_conditioning_scale=1.0)
    if name is None:
        told = "control_image is sent without controlnet"
        raise InvalidRequest(told, param="controlnet", hint=_there(settings))
    _check_name(name, settings)
    if brought.control is None:
        raise InvalidRequest(
            f"controlnet {name!r} is sent without control_image",
            param="control_image",
            hint="send the picture that it is to follow, such as lines, as docs/controlnets.md says",
        )
    if brought.source is not None and brought.source.mask is not None:
        _check_masks(name, settings)
    asked = choice.control_scale(body.controlnet_conditioning_scale, name)
    scale = settings.controlnets[name].scale if asked is None else asked
    return Control(controlnet=name, controlnet_conditioning_scale=float(scale))


def without_effect(body: ImageBody, request: ImageRequest) -> dict[str, bool]:
    """Which of the fields that were sent mean nothing beside the others."""
    alone = body.controlnet_conditioning_scale is not None and request.controlnet is None
    return {"controlnet_conditioning_scale": alone}


def controlnets_json(settings: Settings) -> list[dict[str, object]]:
    """What `GET /v1/models` says of them."""
    most = MAX_CONTROL_SCALE
    return [
        {"id": name, "scale": one.scale, "max_scale": most, "masks": one.masks}
        for name, one in settings.controlnets.items()
    ]


def _check_masks(name: str, settings: Settings) -> None:
    if not settings.controlnets[name].masks:
        able = tuple(other for other, one in settings.controlnets.items() if one.masks)
        leave = "leave out the mask: an image without one may have any controlnet"
        raise InvalidRequest(
            f"controlnet {name!r} and mask do not go together: it knows no masks",
            param="mask",
            hint=f"{one_of(able, 'GET /v1/models')}, or {leave}" if able else leave,
        )


def _check_name(name: str, settings: Settings) -> None:
    """Raises ControlNetNotFound, which names those that there are."""
    if name in settings.controlnets:
        return
    close = suggestion(name.strip().lower()[:64], tuple(settings.controlnets))
    hint = f"{close} {_there(settings)}" if close else _there(settings)
    raise ControlNetNotFound(f"unknown controlnet {name[:64]!r}", param="controlnet", hint=hint)


def _there(settings: Settings) -> str:
    names = tuple(settings.controlnets)
    if not names:
        return "leave controlnet and control_image out: there are none, see docs/controlnets.md"
    return one_of(names, "GET /v1/models")
