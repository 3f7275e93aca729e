"""One entry of the setting `controlnets`: a ControlNet that requests may choose by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from serve.adapter_settings import AdapterName, AdapterSettings, of_text

MAX_CONTROL_SCALE = 2.0

ControlNetName = AdapterName
ControlScale = Annotated[float, Field(ge=0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)]


class ControlNetSettings(AdapterSettings):
    """As an adapter's entry."""

    weights: str = Field(min_length=1, description="a .safetensors file, a folder in diffusers' layout, or a hub id")
    scale: ControlScale = Field(0.75, description="of requests that name none")
    masks: bool = Field(False, description="it knows masks: a request may bring image and mask beside control_image")


ControlNet = Annotated[ControlNetSettings, BeforeValidator(of_text)]
