"""What `presets.yaml` may say. Fields are named as in the API: a preset reads like the request that it fills up."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve.adapter_settings import AdapterName, AdapterScale
from serve.controlnet_settings import ControlNetName, ControlScale
from serve.presets.banned import fold

SLOT = "{prompt}"

Quality = Literal["low", "medium", "high", "xhigh", "max"]
Lockable = Literal[
    "size", "num_inference_steps", "guidance_scale", "negative_prompt", "adapter", "adapter_scale", "controlnet",
    "controlnet_conditioning_scale",
]  # fmt: skip
Steps = Annotated[int, Field(ge=1, le=50)]


def _one_slot(template: str) -> str:
    if template.count(SLOT) != 1:
        raise ValueError(f"holds {template.count(SLOT)} times {SLOT}, exactly one is needed")
    return template


def _says_something(fragment: str) -> str:
    if not fold(fragment.removesuffix("*")).text.strip():
        raise ValueError("is blank, and would be found everywhere")
    return fragment


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Template = Annotated[str, Field(max_length=4000), AfterValidator(_one_slot)]
PictureName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*\.(webp|png|jpe?g)$")]
Banned = Annotated[str, Field(max_length=200), AfterValidator(_says_something)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Words(_Entry):
    """The same in two languages."""

    en: str = Field(min_length=1, max_length=500)
    zh: str = Field(min_length=1, max_length=500)


class Limits(_Entry):
    """Of requests that name the preset; where the service's own are narrower, those count."""

    max_n: int | None = Field(None, ge=1, le=10)
    max_side_px: int | None = Field(None, ge=64, le=4096, multiple_of=16)
    max_steps: Steps | None = None


class Style(_Entry):
    """Words around the prompt; those of a preset go around these."""

    name: Name
    title: Words
    description: Words | None = None
    models: tuple[str, ...] = Field(("*",), min_length=1)
    picture: PictureName | None = None
    prompt: Template
    negative_prompt: str = Field("", max_length=4000)

    def serves(self, *names: str) -> bool:
        """`models` are patterns for a model's names: its setting `model`, or as it is served; one with `!` excludes."""
        wanted = [pattern for pattern in self.models if not pattern.startswith("!")] or ["*"]
        unwanted = [pattern[1:] for pattern in self.models if pattern.startswith("!")]
        return _match(names, wanted) and not _match(names, unwanted)


def _match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


class Preset(Style):
    """What a request that names it is filled up with."""

    prompt: Template = SLOT
    size: str | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: float | None = Field(None, ge=0, le=20)
    cfg_normalization: float | None = Field(None, ge=0, le=10)
    cfg_truncation: float | None = Field(None, ge=0, le=1)
    adapter: AdapterName | None = None
    adapter_scale: AdapterScale | None = None
    controlnet: ControlNetName | None = None
    controlnet_conditioning_scale: ControlScale | None = None
    quality: dict[Quality, Steps] = {}
    limits: Limits = Limits()
    locked: tuple[Lockable, ...] = ()
    banned: tuple[Banned, ...] = ()


class Alias(_Entry):
    """A `model` that clients may name for one that is served, the first if none is said, and presets with it."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    model: str | None = None
    preset: Name | None = None
    style_preset: Name | None = None


class PresetsFile(_Entry):
    presets: tuple[Preset, ...] = ()
    styles: tuple[Style, ...] = ()
    model_aliases: tuple[Alias, ...] = ()
