"""diffusers' own ZImagePipeline over the embedded weights: loaded once, and used by one caller at a time."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import torch
from diffusers import ZImagePipeline
from PIL import Image

FOLDER = Path(__file__).parents[2] / "serve/engine/tiny"
STEPS = 8


def open_pipeline() -> ZImagePipeline:
    """On the CPU with `THREADS` threads of tensor work, one where that is not set: as much as our own gets."""
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    pipeline = ZImagePipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: ZImagePipeline, prompt: str, size: int, seed: int) -> Image.Image:
    """`size` × `size` pixels."""
    generator = torch.Generator().manual_seed(seed)
    image: Image.Image = pipeline(
        prompt, width=size, height=size, num_inference_steps=STEPS, guidance_scale=0.0, generator=generator
    ).images[0]
    return image


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
