"""LoRA files of the embedded model with random weights, in the formats that people have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve.settings import EMBEDDED_FOLDER
from serve.weights import matrices_of

BLOCKS = ("layers.", "noise_refiner.", "context_refiner.")
USUAL = (".to_q", ".to_v", ".to_out.0", ".w1", ".w2")


def modules(*, everything: bool) -> dict[str, list[int]]:
    """Of the embedded transformer: every linear layer, or those that LoRAs usually have."""
    known = matrices_of(EMBEDDED_FOLDER)
    known = {name: shape for name, shape in known.items() if "token" not in name}
    return known if everything else {name: shape for name, shape in known.items() if name.endswith(USUAL)}


def pairs(
    seed: int, rank: int, *, everything: bool = False, strength: float = 0.04
) -> dict[str, tuple[Tensor, Tensor]]:
    """down [rank, in] and up [out, rank] by module."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * strength

    return {
        name: (random(rank, columns), random(rows, rank))
        for name, (rows, columns) in modules(everything=everything).items()
    }


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def diffusers(path: Path, seed: int = 1, rank: int = 4, *, everything: bool = False) -> Path:
    """As `save_lora_weights` writes it."""
    found = pairs(seed, rank, everything=everything)
    tensors = {f"transformer.{name}.lora_A.weight": down for name, (down, _) in found.items()}
    return write(path, tensors | {f"transformer.{name}.lora_B.weight": up for name, (_, up) in found.items()})


def comfy(path: Path, seed: int = 2, rank: int = 3, alpha: float = 6.0) -> Path:
    """`diffusion_model.` and alphas, as ai-toolkit writes it for ComfyUI."""
    tensors = {}
    for name, (down, up) in pairs(seed, rank).items():
        tensors |= {
            f"diffusion_model.{name}.lora_down.weight": down,
            f"diffusion_model.{name}.lora_up.weight": up,
            f"diffusion_model.{name}.alpha": torch.tensor(alpha),
        }
    return write(path, tensors)


def kohya(path: Path, seed: int = 3, rank: int = 4, alpha: float = 12.0) -> Path:
    """`lora_unet_` and underscores, as sd-scripts write it."""
    tensors = {}
    for name, (down, up) in pairs(seed, rank).items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(alpha),
        }
    return write(path, tensors)
