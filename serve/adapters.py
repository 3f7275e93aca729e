"""Adapters on disk: where a LoRA's file lies, and whether it is whole and fits the model. Without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from serve.adapter_settings import AdapterSettings
from serve.architecture import Shapes
from serve.errors import WeightsError
from serve.part_files import PartFiles, digest_of, locate
from serve.weights import matrices_of, tensors_in

PARTS = {
    "down": (".lora_A.weight", ".lora_down.weight", ".lora.down.weight"),
    "up": (".lora_B.weight", ".lora_up.weight", ".lora.up.weight"),
    "alpha": (".alpha",),
}
PREFIXES = ("transformer_", "diffusion_model_", "lora_unet_")
OTHER_KINDS = {
    "dora_scale": "it is a DoRA",
    "lora_magnitude_vector": "it is a DoRA",
    "lokr_": "it is a LoKr",
    "hada_": "it is a LoHa",
    "lora_te": "it also changes the text encoder",
    "text_encoder": "it also changes the text encoder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """A LoRA that was found and verified; `digest` is the SHA-256 of its file, `parameters` how many numbers it has."""

    name: str
    path: Path
    digest: str
    parameters: int
    scale: float
    preload: bool


def _opening(model: Path) -> Callable[[str, AdapterSettings], AdapterFile]:
    matrices = matrices_of(model)

    def opened(name: str, adapter: AdapterSettings) -> AdapterFile:
        path = locate("adapter", name, adapter)
        tensors = tensors_in(path)
        _Check(name, path, matrices).all(tensors)
        return AdapterFile(
            name=name,
            path=path,
            digest=digest_of(path),
            parameters=sum(math.prod(shape) * _times(key) for key, shape in tensors.items()),
            scale=adapter.scale,
            preload=adapter.preload,
        )

    return opened


FILES = PartFiles(lambda settings: settings.adapters, _opening)


def _times(key: str) -> int:
    """One down that query, key and value share is kept for each of them."""
    return 3 if ".qkv." in key or "_qkv." in key else 1


class _Check:
    """Every tensor of a file belongs to a matrix of the model, in a shape that fits it."""

    def __init__(self, name: str, path: Path, matrices: Mapping[str, list[int]]) -> None:
        self._name, self._path = name, path
        self._by_flat_name = {module.replace(".", "_"): shape for module, shape in matrices.items()}

    def all(self, tensors: Shapes) -> None:
        """Raises WeightsError that names the first key which does not belong."""
        for mark, kind in OTHER_KINDS.items():
            if key := next((key for key in tensors if mark in key), None):
                self._refuse(key, f"{kind}, and only plain LoRAs of the transformer are served")
        pairs: dict[str, dict[str, tuple[str, list[int]]]] = {}
        for key, shape in tensors.items():
            module, part = self._split(key)
            pairs.setdefault(module, {})[part] = (key, shape)
        if not pairs:
            raise WeightsError(f"adapter {self._name!r}: {self._path} holds no tensors", hint=self._hint())
        for module, parts in pairs.items():
            self._pair(module, parts)

    def _split(self, key: str) -> tuple[str, str]:
        plain = key.replace("default.", "")
        endings = {ending: part for part, known in PARTS.items() for ending in known}
        ending = next((ending for ending in endings if plain.endswith(ending)), None)
        if ending is None:
            self._refuse(key, "no LoRA has a tensor of this name")
        return plain.removesuffix(ending), endings[ending]

    def _pair(self, module: str, parts: dict[str, tuple[str, list[int]]]) -> None:
        first = next(key for key, _ in parts.values())
        expected = self._shape_of(module)
        if expected is None:
            self._refuse(first, "the model has no such matrix")
        missing = {"down", "up"} - parts.keys()
        if missing:
            self._refuse(first, f"its other half ({' and '.join(sorted(missing))}) is missing")
        rows, columns = expected
        (down, down_shape), (up, up_shape) = parts["down"], parts["up"]
        if len(down_shape) != 2 or down_shape[1] != columns:
            self._refuse(down, f"has shape {down_shape}, but [rank, {columns}] fits the model's matrix {expected}")
        if up_shape != [rows, down_shape[0]]:
            self._refuse(up, f"has shape {up_shape}, but {[rows, down_shape[0]]} fits the model's matrix {expected}")

    def _shape_of(self, module: str) -> list[int] | None:
        flat = module.replace(".", "_")
        for prefix in PREFIXES:
            flat = flat.removeprefix(prefix)
        if flat.endswith("_attention_out"):
            flat = flat.removesuffix("_out") + "_to_out_0"
        if flat.endswith("_attention_qkv"):
            query = self._by_flat_name.get(flat.removesuffix("_qkv") + "_to_q")
            return query and [3 * query[0], query[1]]
        return self._by_flat_name.get(flat)

    def _refuse(self, key: str, what: str) -> NoReturn:
        raise WeightsError(
            f"adapter {self._name!r}: {self._path}: {key}: {what}", param=f"adapters.{self._name}", hint=self._hint()
        )

    def _hint(self) -> str:
        fitting = "take a LoRA that was trained on this model, in diffusers', PEFT's or kohya's format"
        return f"{fitting}, or remove adapters.{self._name}"
