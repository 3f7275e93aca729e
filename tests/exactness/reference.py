"""What every served picture is held against: diffusers' own pipeline over the same weights, fp32 on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import ZImagePipeline

from serve.messages import ImageRequest
from serve.settings import EMBEDDED_FOLDER


@cache
def pipeline() -> Any:
    torch.set_num_threads(1)
    pipe = ZImagePipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(request: ImageRequest) -> np.ndarray:
    """RGB [H, W, 3] uint8 of the request's first image."""
    image = pipeline()(
        request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        cfg_normalization=request.cfg_normalization,
        cfg_truncation=request.cfg_truncation,
        generator=torch.Generator().manual_seed(request.seed),
    ).images[0]
    return np.asarray(image)
