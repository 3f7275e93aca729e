"""ControlNets on disk: where a file lies, its kind, and whether it is whole and fits the model. Without torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.architecture import Shapes, TransformerConfig
from serve.controlnet_settings import ControlNetSettings
from serve.errors import WeightsError
from serve.part_files import PartFiles, digest_of, locate
from serve.weights import has_zeros_only, tensors_in, transformer_of

CLASS = "ZImageControlNetModel"
EVERY = {6: 5, 15: 2}  # layers of the files that are known, and behind which of the model's they add: every so many-th
BEFORE_PROJ = "control_noise_refiner.0.before_proj.weight"


class ControlConfig(BaseModel):
    """diffusers' config.json of a ZImageControlNetModel."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    control_layers_places: tuple[int, ...] = Field(min_length=1)
    control_refiner_layers_places: tuple[int, ...] | None = None
    control_in_dim: int = Field(ge=1)
    add_control_noise_refiner: Literal["control_layers", "control_noise_refiner"] | None = None
    all_patch_size: tuple[int, ...] = (2,)
    all_f_patch_size: tuple[int, ...] = (1,)
    dim: int = 3840
    n_refiner_layers: int = Field(2, ge=0)
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True

    def problem(self, model: TransformerConfig) -> str | None:
        """Why it cannot control this model."""
        return self._size_problem(model) or self._place_problem(model)

    def _size_problem(self, model: TransformerConfig) -> str | None:
        for key in ("dim", "n_heads"):
            if getattr(self, key) != getattr(model, key):
                return f"{key} is {getattr(self, key)}, but the model's is {getattr(model, key)}"
        if self.control_in_dim < model.in_channels:
            return f"control_in_dim is {self.control_in_dim}, but the model's pictures have {model.in_channels}"
        if (2, 1) not in zip(self.all_patch_size, self.all_f_patch_size, strict=False):
            return f"all_patch_size {list(self.all_patch_size)} lacks the patch size 2 of the model"
        return None

    def _place_problem(self, model: TransformerConfig) -> str | None:
        places, refined = self.control_layers_places, self.control_refiner_layers_places or ()
        if places[0] != 0 or any(not a < b < model.n_layers for a, b in pairwise(places)):
            return f"control_layers_places {list(places)} do not rise from 0 within the model's {model.n_layers} layers"
        if self.refiner_blocks == 0 and (refined or self.add_control_noise_refiner is not None):
            return "add_control_noise_refiner and control_refiner_layers_places do not belong together"
        if any(not 0 <= place < model.n_refiner_layers for place in refined) or len(refined) > self.refiner_blocks:
            return f"control_refiner_layers_places {list(refined)} are not among the model's {model.n_refiner_layers}"
        return None

    @property
    def refiner_blocks(self) -> int:
        """That add to the model's noise refiner."""
        kinds = {"control_layers": len(self.control_layers_places), "control_noise_refiner": self.n_refiner_layers}
        return kinds.get(self.add_control_noise_refiner or "", 0)

    def work(self, model: TransformerConfig) -> float:
        """Of a step, beside that of one without it: all blocks are alike."""
        blocks = len(self.control_layers_places) + (self.refiner_blocks or self.n_refiner_layers)
        again = model.n_refiner_layers if self.refiner_blocks else 0
        return 1 + (blocks + again) / (model.n_layers + model.n_refiner_layers)

    def shapes(self) -> Shapes:
        dim = self.dim
        shapes: Shapes = {
            "control_all_x_embedder.2-1.weight": [dim, 4 * self.control_in_dim],
            "control_all_x_embedder.2-1.bias": [dim],
        }
        for index in range(len(self.control_layers_places)):
            shapes |= self._block(f"control_layers.{index}", index)
        if self.add_control_noise_refiner != "control_layers":
            for index in range(self.n_refiner_layers):
                controls = self.add_control_noise_refiner is not None
                shapes |= self._block(f"control_noise_refiner.{index}", index if controls else None)
        return shapes

    def _block(self, name: str, index: int | None) -> Shapes:
        """Of the control block at this place, or of a plain one."""
        dim, inner, head = self.dim, int(self.dim / 3 * 8), self.dim // self.n_heads
        shapes: Shapes = {f"attention.to_{x}.weight": [dim, dim] for x in ("q", "k", "v", "out.0")}
        shapes |= {f"attention.norm_{x}.weight": [head] for x in "qk" if self.qk_norm}
        shapes |= {"feed_forward.w1.weight": [inner, dim], "feed_forward.w3.weight": [inner, dim]}
        shapes |= {"feed_forward.w2.weight": [dim, inner]}
        shapes |= {f"{part}_norm{x}.weight": [dim] for part in ("attention", "ffn") for x in (1, 2)}
        shapes |= {"adaLN_modulation.0.weight": [4 * dim, min(dim, 256)], "adaLN_modulation.0.bias": [4 * dim]}
        projections = [] if index is None else ["before_proj", "after_proj"] if index == 0 else ["after_proj"]
        for projection in projections:
            shapes |= {f"{projection}.weight": [dim, dim], f"{projection}.bias": [dim]}
        return {f"{name}.{key}": shape for key, shape in shapes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetFile:
    """One that was found and verified. `digest` is the SHA-256 of its file and config; `work` of a step with it,
    beside one without."""

    name: str
    path: Path
    config: Mapping[str, Any]
    digest: str
    parameters: int
    work: float
    scale: float
    preload: bool


def digest_with(config: Mapping[str, Any], path: Path) -> str:
    """The same weights at other places are another ControlNet."""
    return hashlib.sha256(f"{digest_of(path)} {json.dumps(config, sort_keys=True)}".encode()).hexdigest()


def _open(model: TransformerConfig, name: str, controlnet: ControlNetSettings) -> ControlNetFile:
    path = locate("controlnet", name, controlnet)
    tensors = tensors_in(path)
    config = _config(name, path, tensors, model)
    if problem := config.problem(model):
        _refuse(name, path, problem)
    if controlnet.masks and config.control_in_dim < (needed := 2 * model.in_channels + 1):
        what = f"masks is true, but control_in_dim is {config.control_in_dim}, and one that knows masks has {needed}"
        _refuse(name, path, what)
    expected = config.shapes()
    for key, shape in expected.items():
        if tensors.get(key) != shape:
            there = f"has shape {tensors[key]}" if key in tensors else "is not there"
            _refuse(name, path, f"{key} {there}, expected {shape}")
    said = config.model_dump(mode="json")
    return ControlNetFile(
        name=name,
        path=path,
        config=said,
        digest=digest_with(said, path),
        parameters=sum(map(math.prod, expected.values())),
        work=config.work(model),
        scale=controlnet.scale,
        preload=controlnet.preload,
    )


FILES = PartFiles(lambda settings: settings.controlnets, lambda model: partial(_open, transformer_of(model)))


def _config(name: str, path: Path, tensors: Shapes, model: TransformerConfig) -> ControlConfig:
    """The one beside it in diffusers' layout, else that of the files which are known without any."""
    beside = path.parent / "config.json"
    if not beside.is_file():
        return _known(name, path, tensors, model)
    try:
        data = json.loads(beside.read_bytes())
        if data.get("_class_name") != CLASS:
            _refuse(name, beside, f"_class_name is {data.get('_class_name')!r}, expected {CLASS}")
        return ControlConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        _refuse(name, beside, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    except (ValueError, AttributeError) as error:
        _refuse(name, beside, f"is not a JSON object: {error}")


def _known(name: str, path: Path, tensors: Shapes, model: TransformerConfig) -> ControlConfig:
    """As diffusers' `from_single_file` tells them apart, without asking the hub for their configs."""
    layers = sum(key.endswith(".after_proj.weight") and key.startswith("control_layers.") for key in tensors)
    embedder = tensors.get("control_all_x_embedder.2-1.weight")
    if layers not in EVERY or embedder is None:
        what = f"it has {layers} control layers, and no config.json beside it says where they add"
        _refuse(name, path, what if layers else "it is no ControlNet of Z-Image")
    refiners = {key.split(".")[1] for key in tensors if key.startswith("control_noise_refiner.")}
    kind: Literal["control_layers", "control_noise_refiner"] | None = None
    if EVERY[layers] == 2:  # union 2.x
        zeros = BEFORE_PROJ not in tensors or has_zeros_only(path, BEFORE_PROJ)
        kind = "control_layers" if zeros else "control_noise_refiner"
    return ControlConfig(
        control_layers_places=tuple(EVERY[layers] * index for index in range(layers)),
        control_refiner_layers_places=None if kind is None else tuple(range(len(refiners))),
        control_in_dim=embedder[1] // 4,
        add_control_noise_refiner=kind,
        dim=embedder[0],
        n_refiner_layers=len(refiners),
        n_heads=model.n_heads,
        n_kv_heads=model.n_heads,
    )


def _refuse(name: str, path: Path, what: str) -> NoReturn:
    fitting = f"take one for this model, as diffusers' {CLASS} saves it or as the model's makers publish it"
    raise WeightsError(
        f"controlnet {name!r}: {path}: {what}",
        param=f"controlnets.{name}",
        hint=f"{fitting}, or remove controlnets.{name}",
    )
