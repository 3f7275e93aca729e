"""Weights on disk: where a model lies, and whether it is whole and of the architecture served here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from serve.architecture import (
    CLASSES,
    PIPELINE,
    SchedulerConfig,
    Shapes,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)
from serve.errors import WeightsError
from serve.settings import EMBEDDED_FOLDER, Settings

INDEX = "model_index.json"
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
EXAMPLE = "Tongyi-MAI/Z-Image-Turbo"

_LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # safetensors' own limit

Json = dict[str, Any]
AnyConfig = TypeVar("AnyConfig", TransformerConfig, VaeConfig, TextEncoderConfig, SchedulerConfig)


@dataclass(frozen=True, slots=True)
class HubId:
    """`org/name` on the Hugging Face hub, optionally `org/name@revision`."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", text)
        return cls(found[1], found[2] or "main") if found else None


def resolve(settings: Settings) -> Path:
    """The folder of the model. Looks only at this machine's disk, never at the network."""
    if settings.embedded:
        return EMBEDDED_FOLDER
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    hub_id = HubId.parse(settings.model)
    if hub_id is None:
        raise WeightsError(
            f"model: there is no folder {settings.model!r}",
            param="model",
            hint=f"set `model` to 'embedded', to a folder that exists, or to a hub id such as {EXAMPLE}",
        )
    if snapshot := _snapshot(hub_id):
        return snapshot
    raise WeightsError(
        f"model: {hub_id} is not on this machine: there is no such folder and it is not in the Hugging Face cache",
        param="model",
        hint=f"zimage download {hub_id}",
    )


def verify(folder: Path) -> None:
    """Raises WeightsError for the first file that is missing, damaged or of another architecture."""
    files = _ModelFolder(folder)
    files.check_index()
    files.check_tokenizer()
    transformer = files.config("transformer", TransformerConfig)
    vae = files.config("vae", VaeConfig)
    text_encoder = files.config("text_encoder", TextEncoderConfig)
    files.config("scheduler", SchedulerConfig)
    files.expect("text_encoder", "hidden_size", text_encoder.hidden_size, "cap_feat_dim", transformer.cap_feat_dim)
    files.expect("vae", "latent_channels", vae.latent_channels, "in_channels", transformer.in_channels)
    files.check_tensors("transformer", transformer.shapes())
    files.check_tensors("vae", vae.shapes())
    files.check_tensors("text_encoder", text_encoder.shapes(), prefix="model.")


def tensors_in(path: Path) -> Shapes:
    """The shape of every tensor of a safetensors file. Raises WeightsError where it is missing or damaged."""
    return _ModelFolder(path.parent).shapes(path.name)


def matrices_of(folder: Path) -> dict[str, list[int]]:
    """The shape [out, in] of every linear layer of the transformer, by its module's name. Raises WeightsError."""
    files = _ModelFolder(folder)
    found: Shapes = {}
    for name in files.weight_files("transformer"):
        found |= files.shapes(name)
    return {
        key.removesuffix(".weight"): shape
        for key, shape in found.items()
        if key.endswith(".weight") and len(shape) == 2
    }


def transformer_of(folder: Path) -> TransformerConfig:
    """Raises WeightsError."""
    return _ModelFolder(folder).config("transformer", TransformerConfig)


def has_zeros_only(path: Path, key: str) -> bool:
    """Whether this tensor of a verified safetensors file is nothing but zeros."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(length))[key]["data_offsets"]
        file.seek(8 + length + start)
        return not any(file.read(end - start))


def bytes_of(folder: Path) -> int:
    """Size on disk of the five components."""
    return sum(file.stat().st_size for part in CLASSES for file in (folder / part).rglob("*") if file.is_file())


def check_pipeline(index: Json, name: str) -> None:
    """Raises WeightsError unless a parsed model_index.json is that of a text-to-image Z-Image model."""
    found = index.get("_class_name")
    if found == PIPELINE:
        return
    variant = isinstance(found, str) and found.startswith("ZImage")
    reason = " (its pictures need more than a prompt)" if variant else ""
    raise WeightsError(
        f"{name}: _class_name is {found!r}{reason}, but only {PIPELINE} is served",
        hint=f"choose a text-to-image model in {PIPELINE} layout, such as {EXAMPLE}",
    )


def _snapshot(hub_id: HubId) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only hub ids need it

    index = try_to_load_from_cache(hub_id.repo, INDEX, revision=hub_id.revision)
    return Path(index).parent if isinstance(index, str) else None


@dataclass(frozen=True, slots=True)
class _ModelFolder:
    """A folder that is being checked; every method raises WeightsError."""

    folder: Path

    def check_index(self) -> None:
        if not self.folder.joinpath(INDEX).is_file():
            raise WeightsError(
                f"{self.folder / INDEX} is missing: this folder is not in diffusers' layout",
                hint="point `model` at the folder that holds model_index.json (a lone .safetensors or .gguf file "
                "cannot be served)",
            )
        index = self.json(INDEX)
        check_pipeline(index, str(self.folder / INDEX))
        for part, classes in CLASSES.items():
            entry = index.get(part)
            if not (isinstance(entry, list) and len(entry) == 2 and entry[1] in classes):
                self.refuse(INDEX, f"{part} is {entry!r}, expected {' or '.join(classes)}")

    def check_tokenizer(self) -> None:
        name, folder = "tokenizer/tokenizer.json", self.folder / "tokenizer"
        if not (self.folder / name).is_file() and (folder / "vocab.json").is_file():
            load = f"T.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            convert = f'python -c "from transformers import AutoTokenizer as T; {load}"'
            self.broken(name, "is missing (vocab.json and merges.txt alone are not read)", convert)
        self.json(name)
        config = self.json("tokenizer/tokenizer_config.json")
        if not (folder / "chat_template.jinja").is_file() and "chat_template" not in config:
            self.broken("tokenizer/chat_template.jinja", "is missing, and tokenizer_config.json holds no chat_template")

    def config(self, part: str, model: type[AnyConfig]) -> AnyConfig:
        name = config_name(part)
        data = self.json(name)
        classes = [data["_class_name"]] if "_class_name" in data else data.get("architectures") or ["not given"]
        if not set(classes) & set(CLASSES[part]):
            self.refuse(name, f"class is {', '.join(classes)}, expected {' or '.join(CLASSES[part])}")
        try:
            config = model.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            self.refuse(name, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        if problem := config.problem():
            self.refuse(name, problem)
        return config

    def expect(self, part: str, key: str, value: int, other_key: str, other: int) -> None:
        if value != other:
            self.refuse(config_name(part), f"{key} is {value}, but {other_key} in transformer/config.json is {other}")

    def check_tensors(self, part: str, expected: Shapes, prefix: str = "") -> None:
        """Every weight file whole, and every tensor that tells the architecture there in its shape."""
        found: Shapes = {}
        for name in self.weight_files(part):
            found |= self.shapes(name)
        if f"{prefix}{next(iter(expected))}" not in found:
            prefix = ""
        for key, shape in expected.items():
            actual = found.get(prefix + key)
            if actual is None:
                self.refuse(part, f"no weight file holds {prefix}{key}, which {part}/config.json calls for")
            if actual != shape:
                self.refuse(part, f"{prefix}{key} has shape {actual}, but {part}/config.json calls for {shape}")

    def weight_files(self, part: str) -> Iterator[str]:
        single = f"{part}/{STEMS[part]}.safetensors"
        index = f"{single}.index.json"
        if (self.folder / index).is_file():
            shards = self.json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                self.broken(index, "lists no shards")
            yield from (f"{part}/{shard}" for shard in sorted(set(shards.values())))
            return
        pickled = sorted(self.folder.joinpath(part).glob("*.bin"))
        if pickled and not (self.folder / single).is_file():
            load = f"Z.from_pretrained({str(self.folder)!r}).save_pretrained({f'{self.folder}-safetensors'!r})"
            self.broken(
                f"{part}/{pickled[0].name}",
                "is a pickle, which can run code when it is loaded: only .safetensors are read",
                f'if you trust it: python -c "from diffusers import ZImagePipeline as Z; {load}"',
            )
        yield single

    def shapes(self, name: str) -> Shapes:
        """From the header of a safetensors file: 8 bytes of header length, JSON, then the data."""
        path = self.path(name)
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
            self.check_not_pointer(name, start)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > _MAX_HEADER:
                self.broken(name, f"is not a safetensors file ({size:,} bytes)")
            if size < 8 + length:
                self.broken(name, f"is truncated within its header ({size:,} bytes of {8 + length:,} and the data)")
            file.seek(8)
            header = self.parse(name, file.read(length))
        header.pop("__metadata__", None)
        try:
            whole = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            shapes = {key: list(entry["shape"]) for key, entry in header.items()}
        except (TypeError, KeyError, IndexError):
            self.broken(name, "has a damaged safetensors header")
        if size < whole:
            self.broken(name, f"is truncated: {whole - size:,} of {whole:,} bytes are missing")
        if size > whole:
            self.broken(name, f"is damaged: {size - whole:,} bytes follow the {whole:,} that belong to it")
        return shapes

    def path(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            self.broken(name, "is missing")
        return path

    def json(self, name: str) -> Json:
        data = self.path(name).read_bytes()
        self.check_not_pointer(name, data)
        return self.parse(name, data)

    def parse(self, name: str, data: bytes) -> Json:
        try:
            parsed = json.loads(data)
        except ValueError as error:
            self.broken(name, f"is damaged: not valid JSON ({error})")
        if not isinstance(parsed, dict):
            self.broken(name, "is damaged: not a JSON object")
        return parsed

    def check_not_pointer(self, name: str, data: bytes) -> None:
        if data.startswith(_LFS_POINTER):
            pull = f"git -C {self.folder} lfs pull"
            self.broken(name, "is a git-LFS pointer, not the file itself", pull)

    def broken(self, name: str, what: str, fix: str | None = None) -> NoReturn:
        raise WeightsError(f"{self.folder / name} {what}", hint=fix or _fetch_again(self.folder))

    def refuse(self, name: str, what: str) -> NoReturn:
        hint = f"use a model that fits together and is in {PIPELINE} layout, such as {EXAMPLE}"
        raise WeightsError(f"{self.folder / name}: {what}", hint=hint)


def config_name(part: str) -> str:
    return "scheduler/scheduler_config.json" if part == "scheduler" else f"{part}/config.json"


def _fetch_again(folder: Path) -> str:
    if folder == EMBEDDED_FOLDER:
        return f"git checkout -- {folder}   (or reinstall the package)"
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        main = folder.parents[1] / "refs" / "main"
        at_main = main.is_file() and main.read_text().strip() == folder.name
        repo = folder.parents[1].name.removeprefix("models--").replace("--", "/")
        return f"zimage download {HubId(repo) if at_main else HubId(repo, folder.name)}"
    return f"copy the file again from where the folder came from, or: zimage download HUB_ID --to {folder}"
