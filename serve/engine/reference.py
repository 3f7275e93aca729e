"""Where a picture begins: noise, or an input picture under as much noise as belongs to its first step.

Same mathematics as diffusers' `ZImageImg2ImgPipeline` and `ZImageInpaintPipeline` (0.42), random numbers in the same
order included.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from serve.engine.pixels import Pixels
from serve.engine.zimage import patchify

REMEMBERED = 16  # encoded pictures; those of one job are asked for one after another
LATENT_PX = 8
WHITE = 128  # of a mask, and all that is lighter

Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class Reference:
    """An input picture, RGB [H, W, 3] of the very size that is drawn; `name` is its own alone.

    `mask` [H, W] has 255 where something else is to be drawn and 0 where it stays; None is everywhere.
    """

    name: str
    pixels: Pixels
    mask: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What a mask keeps of an input picture: its `latents`, its `noise` and the `mask`, each [N, 4 * C].

    `mask` has 1 where the picture is drawn.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor

    def blend(self, tokens: Tensor, sigma: float) -> Tensor:
        """Latents [N, 4 * C] before a step at `sigma`, 0 being the end, with the original where that stays."""
        return (1 - self.mask) * _noised(self.latents, self.noise, sigma) + self.mask * tokens


@dataclass(frozen=True, slots=True)
class Beginning:
    """Latents [N, 4 * C] before the first step, and what stays through all of them."""

    latents: Tensor
    kept: Kept | None = None


class Encoder:
    """The encoding half of a loaded diffusers VAE. It is asked by the engine's thread alone."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._remembered: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @torch.inference_mode()
    def begin(self, reference: Reference, seed: int, sigma: float) -> Beginning:
        """`sigma` is that of the first step. Random numbers are drawn on the CPU, first the encoding's, then noise."""
        mean, deviation = self._distribution(reference)
        generator = torch.Generator().manual_seed(seed)
        sampled = mean + deviation * torch.randn(mean.shape, generator=generator).to(mean.device)
        config = self._vae.config
        latents = patchify((sampled - config.shift_factor) * config.scaling_factor)
        noise = patchify(torch.randn(mean.shape, generator=generator).to(mean.device))
        begun = _noised(latents, noise, sigma)
        if reference.mask is None:
            return Beginning(begun)
        return Beginning(begun, Kept(latents, noise, _mask_tokens(reference.mask, len(mean)).to(mean.device)))

    @torch.inference_mode()
    def control(self, picture: Reference, masked: Reference | None = None) -> Tensor:
        """The latents [C, h, w] of a control picture, fp32, as `ZImageControlNetPipeline` takes them: their mean.

        Beside a `masked` one [2 C + 1, h, w], as `ZImageControlNetInpaintPipeline` does: after them 1 where that stays,
        and its latents with grey where it does not.
        """
        latents = self._mean(picture)
        if masked is None or masked.mask is None:
            return latents
        stays = 1 - _mask_latents(masked.mask).to(latents)
        return torch.cat([latents, stays, self._mean(masked, blank=masked.mask)])

    @torch.inference_mode()
    def encode(self, pixels: Pixels, blank: Pixels | None = None) -> tuple[Tensor, Tensor]:
        """RGB [H, W, 3], grey where `blank` [H, W] is white -> mean and deviation of its latents [C, h, w], fp32."""
        values = 2.0 * (torch.from_numpy(pixels.astype(np.float32) / 255.0).permute(2, 0, 1)[None]) - 1.0
        if blank is not None:
            values = values * torch.from_numpy(blank < WHITE)
        image = values.to(next(self._vae.parameters()).device, self._vae.dtype)
        latents = self._vae.encode(image).latent_dist
        return latents.mean[0].float(), latents.std[0].float()

    def _mean(self, picture: Reference, blank: Pixels | None = None) -> Tensor:
        """Remembered where it is whole."""
        mean, _ = self._distribution(picture) if blank is None else self.encode(picture.pixels, blank)
        latents: Tensor = (mean - self._vae.config.shift_factor) * self._vae.config.scaling_factor
        return latents

    def _distribution(self, reference: Reference) -> tuple[Tensor, Tensor]:
        found = self._remembered.pop(reference.name, None) or self.encode(reference.pixels)
        self._remembered[reference.name] = found
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return found


def begin(
    reference: Reference | None,
    noise: Callable[[], Tensor],
    encoded: Callable[[Reference], Beginning],
    free: Callable[[], None],
) -> Beginning:
    """With `noise` where there is no picture."""
    if reference is None:
        return Beginning(noise())
    return with_room(lambda: encoded(reference), free)


def with_room(encode: Callable[[], Encoded], free: Callable[[], None]) -> Encoded:
    """A picture that the memory has no room for is tried again once it is freed."""
    try:
        return encode()
    except torch.OutOfMemoryError as error:
        error.__traceback__ = None  # its frames hold what is to be freed
    free()
    return encode()


def _noised(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The scheduler's `scale_noise`."""
    return sigma * noise + (1.0 - sigma) * latents


def _mask_tokens(mask: Pixels, channels: int) -> Tensor:
    """[H, W] of 0 and 255 -> [N, 4 * C] of 0 and 1, a latent taking the value of its first pixel."""
    return patchify(_mask_latents(mask).expand(channels, -1, -1).contiguous())


def _mask_latents(mask: Pixels) -> Tensor:
    """[1, h, w]"""
    return torch.from_numpy((mask[::LATENT_PX, ::LATENT_PX] >= WHITE).astype(np.float32))[None]
