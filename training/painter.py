"""A model folder as evaluation sees it: prompts in, pictures out, through the real ZImagePipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ZImagePipeline
from torch import Tensor
from torch.nn import functional

from training.data.compositor import NATIVE_PX

STEPS = 8


class Painter:
    def __init__(self, model: Path, device: torch.device, batch: int) -> None:
        """In fp32, so that what is measured is the weights."""
        self.pipeline = ZImagePipeline.from_pretrained(model, dtype=torch.float32).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self._batch = batch

    def paint(self, prompts: Sequence[str], seed: int) -> Tensor:
        """[N, 3, 128, 128] in 0..1; prompt `i` is drawn with `seed + i`, whatever the batch."""
        starts = range(0, len(prompts), self._batch)
        return torch.cat([self._paint(prompts[start : start + self._batch], seed + start) for start in starts])

    def _paint(self, prompts: Sequence[str], seed: int) -> Tensor:
        pictures: Tensor = self.pipeline(
            list(prompts),
            height=NATIVE_PX,
            width=NATIVE_PX,
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            generator=[torch.Generator().manual_seed(seed + index) for index in range(len(prompts))],
            output_type="pt",
        ).images
        return pictures.float()

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in -1..1 through the VAE and back."""
        vae = self.pipeline.vae
        return torch.cat(
            [
                vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1)
                for part in torch.split(pictures, self._batch)
            ]
        )


def halved(pictures: Tensor) -> Tensor:
    return functional.avg_pool2d(pictures, 2)
