"""Classifier-free guidance as diffusers' ZImagePipeline does it: scale, normalisation and truncation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Guidance:
    """`normalization` bounds the norm of what is guided to so many times that of the prompt alone; 0: no bound.

    Where 1 - sigma is over `truncation` the steps are not guided any more; 1: all are.
    """

    scale: float = 0.0
    normalization: float = 0.0
    truncation: float = 1.0

    def at(self, sigma: float) -> bool:
        """Whether the step that begins at `sigma` is guided."""
        time = (1000 - torch.tensor(sigma) * 1000) / 1000  # rounded as diffusers rounds it
        return self.scale > 0 and time.item() <= self.truncation

    def combine(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Velocities of one picture, in fp32."""
        guided = positive + self.scale * (positive - negative)
        if self.normalization > 0:
            most = torch.linalg.vector_norm(positive) * self.normalization
            norm = torch.linalg.vector_norm(guided)
            guided = guided * (most / norm).clamp(max=1.0)
        return guided
