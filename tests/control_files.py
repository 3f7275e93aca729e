"""ControlNets of the embedded model with random weights, in all kinds that diffusers knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageControlNetModel

MODEL = {"dim": 192, "n_heads": 6, "n_kv_heads": 6}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"control_layers_places": [0, 2, 4], "control_in_dim": 16, "n_refiner_layers": 1},
    "bare": {"control_layers_places": [0], "control_in_dim": 16, "n_refiner_layers": 0},
    "shared": {
        "control_layers_places": [0, 3],
        "control_refiner_layers_places": [0],
        "control_in_dim": 33,
        "add_control_noise_refiner": "control_layers",
        "n_refiner_layers": 1,
    },
    "own": {
        "control_layers_places": [0, 1, 5],
        "control_refiner_layers_places": [0],
        "control_in_dim": 33,
        "add_control_noise_refiner": "control_noise_refiner",
        "n_refiner_layers": 1,
    },
}


def random(kind: str, seed: int = 1, strength: float = 0.03) -> ZImageControlNetModel:
    """As it comes from diffusers its last matrices are zero, and it changes nothing: not this one's."""
    net = ZImageControlNetModel(**MODEL, **KINDS[kind])
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * strength
        parameter.data = noise + ("norm" in name and "adaLN" not in name)
    return net.eval()


def write(folder: Path, kind: str, seed: int = 1) -> Path:
    """In diffusers' layout."""
    random(kind, seed).save_pretrained(folder)
    return folder
