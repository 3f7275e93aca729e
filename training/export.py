"""The trained networks as a diffusers folder that `ZImagePipeline.from_pretrained` loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import AutoTokenizer, Qwen3Model

from training.data.fetch import NOTICE


def export(
    vae: AutoencoderKL,
    text_encoder: Qwen3Model,
    transformer: ZImageTransformer2DModel,
    tokenizer: Path,
    shift: float,
    folder: Path,
) -> int:
    """Writes bf16 weights and returns the folder's size in bytes. The networks are moved to the CPU."""
    vae, text_encoder, transformer = (network.eval().cpu().bfloat16() for network in (vae, text_encoder, transformer))
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift, use_dynamic_shifting=False),
        vae=vae.to(memory_format=torch.contiguous_format),
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    shutil.copy(NOTICE, folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
