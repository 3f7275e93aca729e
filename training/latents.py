"""All scenes as latents on the device: the VAE runs once, the transformer trains from memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from training.config import Canvas
from training.data.blocks import Block, Captions, SceneFactory
from training.data.compositor import NATIVE_PX, compose
from training.data.textures import Textures
from training.forward import patchify
from training.models import LATENT_CHANNELS

_PIXELS_AT_ONCE = 512 * NATIVE_PX**2
_MEASURED_SCENES = 65_536


@dataclass(frozen=True, slots=True)
class CachedCaptions:
    """Token ids [N, variants, tokens], zero behind each one's length [N, variants]."""

    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Scenes of one canvas: patches [N, tokens, 64] in bf16 and captions per bucket."""

    canvas: Canvas
    patches: Tensor
    captions: tuple[CachedCaptions, ...]


@dataclass(frozen=True, slots=True)
class LatentScale:
    """`(latents - shift) * factor` has zero mean and a deviation of one."""

    shift: float
    factor: float


def cache_latents(
    vae: AutoencoderKL, scenes: SceneFactory, textures: Textures, canvases: Sequence[Canvas]
) -> tuple[list[LatentCache], LatentScale]:
    """The scale is that of the first canvas, and is also written into the VAE's config."""
    caches: list[LatentCache] = []
    scale: LatentScale | None = None
    for index, canvas in enumerate(canvases):
        block = scenes.take(index)
        patches = _encode(vae, textures, canvas, block)
        scale = scale or _measure(patches)
        patches.sub_(scale.shift).mul_(scale.factor)
        caches.append(LatentCache(canvas, patches, tuple(_move(part, patches.device) for part in block.captions)))
    if scale is None:
        raise ValueError("no canvas to cache")
    vae.register_to_config(shift_factor=scale.shift, scaling_factor=scale.factor)
    return caches, scale


@torch.no_grad()
def _encode(vae: AutoencoderKL, textures: Textures, canvas: Canvas, block: Block) -> Tensor:
    """The posterior's mean as unscaled patches [N, tokens, 64]."""
    device = textures[NATIVE_PX].device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = copy.deepcopy(vae.encoder).eval().to(dtype)
    backgrounds, layers = (torch.from_numpy(array).to(device) for array in (block.backgrounds, block.layers))
    patches = torch.empty(len(layers), canvas.tokens, 4 * LATENT_CHANNELS, dtype=torch.bfloat16, device=device)
    rows = max(4, _PIXELS_AT_ONCE // (canvas.width * canvas.height))
    for start in range(0, len(patches), rows):
        part = slice(start, start + rows)
        x = compose(backgrounds[part], layers[part], textures, canvas.width, canvas.height)
        latents = encoder(x.to(dtype, memory_format=torch.channels_last))[:, :LATENT_CHANNELS]
        patches[part] = patchify(latents.contiguous())
    return patches


def _measure(patches: Tensor) -> LatentScale:
    sample = patches[:_MEASURED_SCENES].float()
    return LatentScale(shift=round(sample.mean().item(), 5), factor=round(1 / sample.std().item(), 5))


def _move(captions: Captions, device: torch.device) -> CachedCaptions:
    return CachedCaptions(
        torch.from_numpy(captions.ids).to(device, torch.int32),
        torch.from_numpy(captions.lengths).to(device, torch.int32),
    )
