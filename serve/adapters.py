"""Adapters on disk: where a LoRA's file lies, and whether it is whole and fits the model. Without torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from serve.adapter_settings import AdapterSettings
from serve.architecture import Shapes
from serve.controlnet_settings import ControlNetSettings
from serve.errors import WeightsError
from serve.settings import Settings
from serve.weights import HubId, matrices_of, tensors_in

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
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """A LoRA that was found and verified; `digest` is the SHA-256 of its file, `parameters` how many numbers it has."""

    name: str
    path: Path
    digest: str
    parameters: int
    scale: float
    preload: bool


def open_files(settings: Settings, model: Path) -> dict[str, AdapterFile]:
    """Of all adapters, by name, for the model in this folder. Raises WeightsError for the first that cannot be served.

    Looks only at this machine's disk, never at the network.
    """
    if not settings.adapters:
        return {}
    matrices = matrices_of(model)
    return {name: _open(name, adapter, matrices) for name, adapter in settings.adapters.items()}


def located(settings: Settings, model: Path) -> dict[str, AdapterSettings]:
    """The setting itself, verified as in `open_files`, each with the path of its file."""
    return {
        name: settings.adapters[name].model_copy(update={"weights": str(file.path), "file": None})
        for name, file in open_files(settings, model).items()
    }


def check_files(settings: Settings, model: Path) -> list[WeightsError]:
    """Of every adapter that cannot be served, why."""
    found = []
    matrices = matrices_of(model) if settings.adapters else {}
    for name, adapter in settings.adapters.items():
        try:
            _open(name, adapter, matrices)
        except WeightsError as error:
            found.append(error)
    return found


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _open(name: str, adapter: AdapterSettings, matrices: Mapping[str, list[int]]) -> AdapterFile:
    path = locate(name, adapter)
    tensors = tensors_in(path)
    _Check(name, path, matrices).all(tensors)
    parameters = sum(math.prod(shape) * _times(key) for key, shape in tensors.items())
    digest = digest_of(path)
    return AdapterFile(
        name=name, path=path, digest=digest, parameters=parameters, scale=adapter.scale, preload=adapter.preload
    )


def _times(key: str) -> int:
    """One down that query, key and value share is kept for each of them."""
    return 3 if ".qkv." in key or "_qkv." in key else 1


def locate(name: str, adapter: AdapterSettings | ControlNetSettings, kind: str = "adapter") -> Path:
    """Raises WeightsError where there is no such file, or more than one."""
    path = Path(adapter.weights).expanduser()
    if path.is_file():
        return path.resolve()
    folder = path if path.is_dir() else _snapshot(adapter.weights)
    if folder is None:
        hub_id = HubId.parse(adapter.weights)
        fetch = f"hf download {hub_id.repo} --revision {hub_id.revision}" if hub_id else None
        raise WeightsError(
            f"{kind} {name!r}: {adapter.weights} is not on this machine",
            param=f"{kind}s.{name}.weights",
            hint=fetch or f"set {kind}s.{name}.weights to a .safetensors file, a folder that holds one, or a hub id",
        )
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if adapter.file is not None and adapter.file not in files:
        _not_there(f"{kind}s.{name}", folder, f"holds no {adapter.file}", files)
    if adapter.file is None and len(files) != 1:
        _not_there(f"{kind}s.{name}", folder, f"holds {len(files)} .safetensors files", files)
    return (folder / (adapter.file or files[0])).resolve()


def _not_there(setting: str, folder: Path, what: str, files: list[str]) -> NoReturn:
    there = f"set {setting}.file to one of: {', '.join(files)}" if files else "point at the file itself"
    kind, _, name = setting.partition("s.")
    raise WeightsError(f"{kind} {name!r}: {folder} {what}", param=f"{setting}.file", hint=there)


def _snapshot(weights: str) -> Path | None:
    hub_id = HubId.parse(weights)
    if hub_id is None:
        return None
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only hub ids need it
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


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
