"""The models that KServe's clients see: the pipeline and its two parts, and the tensors that they take and give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serve.errors import ModelNotFound, NotFound
from serve.settings import Settings

VERSION = "1"

Datatype = Literal["BYTES", "UINT8", "INT32", "INT64", "FP32", "BF16"]
Kind = Literal["pipeline", "text_encoder", "denoiser"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """`dims` come after the batch's; -1 is any length."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...] = (1,)
    optional: bool = False

    @property
    def shape(self) -> list[int]:
        """With the batch's dimension, as metadata has it."""
        return [-1, *self.dims]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`served` is the model that it is, or a part of."""

    name: str
    served: str
    kind: Kind
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def whole(self) -> bool:
        """It draws pictures; its parts are only described."""
        return self.kind == "pipeline"


PROMPT = TensorSpec(name="prompt", datatype="BYTES")
NEGATIVE_PROMPT = TensorSpec(name="negative_prompt", datatype="BYTES", optional=True)
HOW = (
    TensorSpec(name="seed", datatype="INT64", optional=True),
    TensorSpec(name="width", datatype="INT32", optional=True),
    TensorSpec(name="height", datatype="INT32", optional=True),
    TensorSpec(name="steps", datatype="INT32", optional=True),
    TensorSpec(name="guidance", datatype="FP32", optional=True),
)
GENERATED_IMAGE = TensorSpec(name="generated_image", datatype="UINT8", dims=(-1, -1, 3))
IMAGE_BYTES = TensorSpec(name="image_bytes", datatype="BYTES")
SEED_USED = TensorSpec(name="seed_used", datatype="INT64")

INPUTS = {spec.name: spec for spec in (PROMPT, NEGATIVE_PROMPT, *HOW)}
OUTPUTS = {spec.name: spec for spec in (GENERATED_IMAGE, IMAGE_BYTES, SEED_USED)}


def all_models(settings: Settings) -> tuple[Model, ...]:
    """Of every model that is served the pipeline and its parts, the first one's first."""
    return tuple(part for model in settings.served for part in models(settings.of(model), settings.tail(model)))


def models(settings: Settings, tail: str = "") -> tuple[Model, ...]:
    """Of one model, whose parts' names end with `tail`. The pipeline first.

    Embeddings are [tokens, features], one for the prompt and one for the negative prompt.
    """
    floats: Datatype = "FP32" if settings.embedded or settings.device == "cpu" else "BF16"
    if settings.precision != "auto":
        floats = "FP32" if settings.precision == "fp32" else "BF16"
    embeddings = TensorSpec(name="prompt_embeds", datatype=floats, dims=(-1, -1))
    served = settings.served_model_name
    negative = TensorSpec(name="negative_prompt_embeds", datatype=floats, dims=(-1, -1), optional=True)
    return (
        Model(
            name=served,
            served=served,
            kind="pipeline",
            platform="ensemble",
            inputs=tuple(INPUTS.values()),
            outputs=tuple(OUTPUTS.values()),
        ),
        Model(
            name=f"text_encoder{tail}",
            served=served,
            kind="text_encoder",
            platform="python",
            inputs=(PROMPT, NEGATIVE_PROMPT),
            outputs=(embeddings, negative),
        ),
        Model(
            name=f"denoiser{tail}",
            served=served,
            kind="denoiser",
            platform="python",
            inputs=(embeddings, negative, *HOW),
            outputs=tuple(OUTPUTS.values()),
        ),
    )


def model_of(settings: Settings, name: str, version: str | None = None) -> Model:
    """Raises ModelNotFound, or NotFound for another version than the one there is."""
    there = {model.name: model for model in reversed(all_models(settings))}
    if name not in there:
        hint = f"there are: {', '.join(reversed(there))}"
        raise ModelNotFound(f"Request for unknown model: {name[:64]!r} is not found", param="model", hint=hint)
    if version is not None and version != VERSION:
        hint = f"the one version is {VERSION}"
        raise NotFound(f"Request for unknown model: {name!r} version {version[:20]!r} is not found", hint=hint)
    return there[name]
