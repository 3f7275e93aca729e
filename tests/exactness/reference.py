"""What every served picture is held against: diffusers' own pipelines over the same weights, fp32 on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline, ZImagePipeline

from serve.messages import ImageRequest
from serve.settings import EMBEDDED_FOLDER
from tests.exactness import inputs


@cache
def pipeline() -> Any:
    torch.set_num_threads(1)
    pipe = ZImagePipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def from_picture(kind: type) -> Any:
    pipe = kind(**pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(request: ImageRequest) -> np.ndarray:
    """RGB [H, W, 3] uint8 of the request's first image."""
    pipe, begins_with = _chosen(request)
    image = pipe(
        request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        cfg_normalization=request.cfg_normalization,
        cfg_truncation=request.cfg_truncation,
        generator=torch.Generator().manual_seed(request.seed),
        **begins_with,
    ).images[0]
    return np.asarray(image)


def _chosen(request: ImageRequest) -> tuple[Any, dict[str, Any]]:
    if request.image is None:
        return pipeline(), {}
    begins_with = {"image": inputs.opened(request.image), "strength": request.strength}
    if request.mask is None:
        return from_picture(ZImageImg2ImgPipeline), begins_with
    return from_picture(ZImageInpaintPipeline), begins_with | {"mask_image": inputs.opened(request.mask)}
