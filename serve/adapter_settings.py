"""One entry of the setting `adapters`: a LoRA that requests may choose by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_SCALE = 4.0

AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
AdapterScale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]


class AdapterSettings(BaseModel):
    """In a config file a text alone is its `weights`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(min_length=1, description="a .safetensors file, a folder that holds one, or a hub id")
    file: str | None = Field(None, pattern=r"^[^/\\]+\.safetensors$", description="which one, where there are several")
    scale: AdapterScale = Field(1.0, description="of requests that name none")
    preload: bool = Field(False, description="loaded before a replica is ready; else on first use")


def of_text(value: Any) -> Any:
    """An entry as its mapping: a text alone is its `weights`."""
    return {"weights": value} if isinstance(value, str) else value


Adapter = Annotated[AdapterSettings, BeforeValidator(of_text)]
