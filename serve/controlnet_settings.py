"""One entry of the setting `controlnets`: a ControlNet that requests may choose by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_CONTROL_SCALE = 2.0

ControlNetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
ControlScale = Annotated[float, Field(ge=0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)]


class ControlNetSettings(BaseModel):
    """In a config file a text alone is its `weights`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(min_length=1, description="a .safetensors file, a folder in diffusers' layout, or a hub id")
    file: str | None = Field(None, pattern=r"^[^/\\]+\.safetensors$", description="which one, where there are several")
    scale: ControlScale = Field(0.75, description="of requests that name none")
    preload: bool = Field(False, description="loaded before a replica is ready; else on first use")


def _of_text(value: Any) -> Any:
    return {"weights": value} if isinstance(value, str) else value


ControlNet = Annotated[ControlNetSettings, BeforeValidator(_of_text)]
