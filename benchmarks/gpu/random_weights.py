"""A model of Z-Image-Turbo's full size with random weights, for measuring speed where the real ones cannot be had.

    python -m benchmarks.gpu.random_weights FOLDER

Needs a GPU with 24 GB and 21 GB of disk. The pictures are noise; every shape, dtype and file is as in the real model.
Zeros would run faster than weights do, so matrices are normal with deviation 0.02 and norms are one.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from serve.settings import EMBEDDED_FOLDER

TEXT_ENCODER = Qwen3Config(
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1_000_000,
)
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

MODELS: dict[str, Callable[[], Any]] = {
    "transformer": ZImageTransformer2DModel,
    "text_encoder": lambda: Qwen3Model(TEXT_ENCODER),
    "vae": lambda: AutoencoderKL(**VAE),
}


def write(folder: Path) -> None:
    """A complete folder in ZImagePipeline layout; the tokenizer is the embedded model's, whose ids all are known."""
    folder.mkdir(parents=True)
    for name in ("model_index.json", "tokenizer"):
        source = EMBEDDED_FOLDER / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for name in MODELS:
        model = build(name)
        model.save_pretrained(folder / name)
        print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters", flush=True)
        del model


def build(name: str) -> Any:
    """One of MODELS on the GPU in bf16."""
    with torch.device("meta"):
        model = MODELS[name]()
    model = randomize(model.to(torch.bfloat16).to_empty(device="cuda")).eval()
    if name == "text_encoder":  # its one buffer is computed, not loaded
        model.rotary_emb = Qwen3RotaryEmbedding(TEXT_ENCODER).to("cuda")
    return model


@torch.no_grad()
def randomize(model: nn.Module) -> Any:
    generator = torch.Generator("cuda").manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.02, generator=generator) if parameter.ndim > 1 else parameter.fill_(1.0)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
