"""Low-rank terms beside the matrices of a transformer: x · Wᵀ + strength · (x · downᵀ) · upᵀ.

Beside and not merged: a merged copy would be the whole model once more for each adapter, and merging in place costs
reading and writing all of it whenever the adapter changes (docs/adr/0017-adapters.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from cachetools import LRUCache
from diffusers.loaders import ZImageLoraLoaderMixin
from torch import Tensor, nn

from serve.adapters import AdapterFile
from serve.engine.ops import Activation, Quantized
from serve.errors import WeightsError
from serve.part_files import digest_of

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
BLOCKS = re.compile(r"((?:layers|noise_refiner|context_refiner)\.\d+)\.(attention|feed_forward)\.(.+)")
PLACES = {
    "to_q": ("qkv", 0),
    "to_k": ("qkv", 1),
    "to_v": ("qkv", 2),
    "to_out.0": ("out", 0),
    "w1": ("w13", 0),
    "w3": ("w13", 1),
    "w2": ("w2", 0),
}
SCHEDULES = 16  # of one adapter, where it changes what depends on the timestep


@dataclass(frozen=True, slots=True)
class LowRank:
    """down [r, in], up [out, r]; what training scaled them by is inside."""

    down: Tensor
    up: Tensor

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        return LowRank(self.down.to(device, dtype).contiguous(), self.up.to(device, dtype).contiguous())


@dataclass(frozen=True, slots=True)
class Beside:
    """The terms of one matrix, which may be several fused ones: `ups` are (columns, ranks, up [out, r]).

    All downs are one matrix [R, in].
    """

    down: Tensor
    ups: tuple[tuple[slice, slice, Tensor], ...]

    @classmethod
    def of(cls, parts: Mapping[int, LowRank]) -> Beside:
        """Of equally large parts, by their place in the fused matrix."""
        ups, rank = [], 0
        for place, part in sorted(parts.items()):
            rows, own = part.up.shape
            ups.append((slice(place * rows, (place + 1) * rows), slice(rank, rank + own), part.up))
            rank += own
        return cls(torch.cat([part.down for _, part in sorted(parts.items())]), tuple(ups))

    def add(self, y: Tensor, x: Activation, strength: Tensor) -> Tensor:
        """Into y [B, S, out], which must be a matrix product's own result; x [B, S, in], strength [B]."""
        inner = F.linear(_dense(x, y.dtype), self.down) * strength.view(-1, 1, 1).to(y.dtype)
        flat, inner = y.view(-1, y.shape[-1]), inner.view(-1, inner.shape[-1])
        for columns, ranks, up in self.ups:
            flat[:, columns].addmm_(inner[:, ranks], up.t())
        return y

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + sum(up.nbytes for _, _, up in self.ups)

    def to(self, device: torch.device) -> Beside:
        return Beside(self.down.to(device), tuple((columns, ranks, up.to(device)) for columns, ranks, up in self.ups))


@dataclass(frozen=True, slots=True)
class BlockTerms:
    """Of one transformer block; None where its matrix is as it was. `strength` [B] is that of each row."""

    matrices: Mapping[str, Beside]
    strength: Tensor

    def add(self, name: str, y: Tensor, x: Activation) -> Tensor:
        beside = self.matrices.get(name)
        return y if beside is None else beside.add(y, x, self.strength)


@dataclass(eq=False, slots=True)
class Adapter:
    """A LoRA on its device: of the matrices of blocks, and of other linear layers by their module's name.

    `retired` says that nobody will use it again: what was recorded with it may go.
    """

    name: str
    digest: str
    blocks: Mapping[str, Mapping[str, Beside]]
    layers: Mapping[str, LowRank]
    nbytes: int
    retired: bool = False
    schedules: LRUCache[Any, Any] = field(default_factory=lambda: LRUCache(SCHEDULES))

    @classmethod
    def on(
        cls,
        device: torch.device,
        file: AdapterFile,
        blocks: Mapping[str, Mapping[str, Beside]],
        layers: Mapping[str, LowRank],
    ) -> Adapter:
        """To a GPU it is copied beside what the step loop launches there, and not in line with it."""
        nbytes = sum(part.nbytes for part in layers.values())
        nbytes += sum(beside.nbytes for matrices in blocks.values() for beside in matrices.values())
        with own_stream(device):
            moved = {
                block: {name: it.to(device) for name, it in matrices.items()} for block, matrices in blocks.items()
            }
            other = {name: part.to(device, part.down.dtype) for name, part in layers.items()}
        return cls(file.name, file.digest, moved, other, nbytes)


@dataclass(frozen=True, slots=True)
class Extension:
    """An adapter as a request has it, or a batch of requests; `strength` [1] or [B] is its scale, on the device."""

    adapter: Adapter
    strength: Tensor

    @classmethod
    def of(cls, adapter: Adapter, scale: float, device: torch.device) -> Extension:
        return cls(adapter, torch.tensor([scale], dtype=torch.float32, device=device))


def terms_of(extension: Extension | None, stack: str, indices: Iterable[int]) -> list[BlockTerms | None] | None:
    """What an extension adds to these blocks of one stack of the model, such as `layers`."""
    if extension is None:
        return None
    held = (extension.adapter.blocks.get(f"{stack}.{index}") for index in indices)
    return [None if matrices is None else BlockTerms(matrices, extension.strength) for matrices in held]


@contextmanager
def extended(modules: Mapping[str, nn.Module], extension: Extension | None) -> Iterator[None]:
    """While it is open the linear layers among `modules` have the terms of the extension.

    For the few layers outside of blocks' matrices. Only for the thread that owns the model.
    """
    hooks = []
    if extension is not None:
        for name, part in extension.adapter.layers.items():
            hooks.append(modules[name].register_forward_hook(_adding(part, extension.strength)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adding(part: LowRank, strength: Tensor) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inner = F.linear(inputs[0], part.down)
        scale = strength.view(-1, *[1] * (inner.ndim - 1)).to(inner.dtype)
        return output + F.linear(inner * scale, part.up)

    return hook


def load(file: AdapterFile, device: torch.device, dtype: torch.dtype) -> Adapter:
    """Reads, converts and moves a verified file. Raises WeightsError where it has changed since it was verified."""
    if digest_of(file.path) != file.digest:
        raise WeightsError(
            f"adapter {file.name!r}: {file.path} has changed since the start", hint="restart the service"
        )
    state, metadata = ZImageLoraLoaderMixin.lora_state_dict(
        str(file.path.parent), weight_name=file.path.name, local_files_only=True, return_lora_metadata=True
    )
    config = {key.removeprefix("transformer."): value for key, value in (metadata or {}).items()}
    parts = _parts({key.removeprefix("transformer."): tensor for key, tensor in state.items()}, config)
    blocks: dict[str, dict[str, dict[int, LowRank]]] = {}
    layers: dict[str, LowRank] = {}
    for module, part in parts.items():
        place = _place(module)
        if place is None:
            layers[module] = part.to(torch.device("cpu"), dtype)
        else:
            block, matrix, index = place
            blocks.setdefault(block, {}).setdefault(matrix, {})[index] = part.to(torch.device("cpu"), dtype)
    fused = {
        block: {matrix: Beside.of(places) for matrix, places in matrices.items()} for block, matrices in blocks.items()
    }
    return Adapter.on(device, file, fused, layers)


def _place(module: str) -> tuple[str, str, int] | None:
    """Block, fused matrix, and the part of it; None for what lies outside of them."""
    found = BLOCKS.fullmatch(module)
    return found and (found[1], *PLACES[found[3]])


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _parts(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, LowRank]:
    parts = {}
    for key, down in state.items():
        if key.endswith(DOWN):
            module = key.removesuffix(DOWN)
            parts[module] = LowRank(down, state[module + UP] * _scaling(module, len(down), config))
    return parts


def _scaling(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / rank as PEFT has it in the file's metadata; without any it is inside the tensors, or one."""
    alpha = next(
        (value for pattern, value in config.get("alpha_pattern", {}).items() if _matches(pattern, module)),
        config.get("lora_alpha", rank),
    )
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({pattern.removeprefix('^')})", module) is not None


def _dense(x: Activation, dtype: torch.dtype) -> Tensor:
    if isinstance(x, Quantized):
        return (x.data.to(dtype) * x.scale.to(dtype)).view(x.shape)
    return x
