"""Draws laid-out scenes in batches on the device: the training pictures are made, never stored."""

from __future__ import annotations

from functools import cache
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from training.data.layout import (
    GROUND_BOTTOM,
    GROUND_TOP,
    HORIZON,
    LARGE_LAYER,
    LAYERS,
    MIDDLE,
    SIZE,
    STARS,
    TEXTURE,
    TINT,
    TOP,
    X,
    Y,
)
from training.data.textures import LEVELS_PX, Textures

NATIVE_PX = 128


def compose(backgrounds: Tensor, layers: Tensor, textures: Textures, width: int, height: int) -> Tensor:
    """Backgrounds [B, 14] and layers [B, 5, 7] (layout.py) as pictures [B, 3, H, W] in -1..1."""
    pictures = _draw_backgrounds(backgrounds, width, height)
    for layer in range(LAYERS):
        rows = (layers[:, layer, TEXTURE] >= 0).nonzero()[:, 0]
        if len(rows):
            sprites = _sprites(layers[rows, layer], textures, width, height, large=layer == LARGE_LAYER)
            pictures[rows] = pictures[rows] * (1 - sprites[:, 3:]) + sprites[:, :3]
    return pictures.clamp(0, 1) * 2 - 1


def _draw_backgrounds(backgrounds: Tensor, width: int, height: int) -> Tensor:
    y = ((torch.arange(height, device=backgrounds.device) + 0.5) / height)[None, None]
    horizon = backgrounds[:, HORIZON, None, None]
    flat = horizon > 1.5
    end = torch.where(flat, 1.0, horizon)
    sky = _gradient(backgrounds[:, TOP], backgrounds[:, MIDDLE], y / end)
    ground = _gradient(backgrounds[:, GROUND_TOP], backgrounds[:, GROUND_BOTTOM], (y - end) / (1 - end).clamp(min=0.05))
    below = ((y - end) * height + 0.5).clamp(0, 1) * ~flat
    columns = (sky * (1 - below) + ground * below) / 255
    pictures = columns[..., None].expand(-1, 3, height, width).clone()
    shining = backgrounds[:, STARS, None, None, None]
    if bool((shining > 0).any()):
        stars = _stars(width, height).to(pictures.device) * shining * (y < end)[..., None]
        pictures = pictures * (1 - stars) + stars
    return pictures


def _gradient(first: Tensor, last: Tensor, share: Tensor) -> Tensor:
    share = share.clamp(0, 1)
    return first[..., None] * (1 - share) + last[..., None] * share


@cache
def _stars(width: int, height: int) -> Tensor:
    """The same sky in every picture, [H, W] in 0..1."""
    rng = Random(7)
    y, x = ((torch.arange(side) + 0.5) / side for side in (height, width))
    sky = torch.zeros(height, width)
    for _ in range(26):
        left, top, light, radius = rng.random(), rng.random() * 0.9, rng.uniform(0.35, 1), rng.uniform(0.006, 0.011)
        dx, dy = ((x - left) * width / min(width, height), (y - top) * height / min(width, height))
        sky = torch.maximum(sky, light * torch.exp(-(dx[None] ** 2 + dy[:, None] ** 2) / (2 * radius * radius)))
    return sky


def _sprites(layer: Tensor, textures: Textures, width: int, height: int, large: bool) -> Tensor:
    """One thing a picture as a premultiplied RGBA canvas [N, 4, H, W]. It never grows beyond its native size."""
    unit = min(width, height, NATIVE_PX)
    centered = unit < min(width, height) and not large
    side = layer[:, SIZE, None] * unit
    x, y = (
        _offsets(layer[:, center, None], side, length, unit if centered else length)
        for center, length in ((X, width), (Y, height))
    )
    count = len(layer)
    grid = torch.stack([x[:, None, :].expand(count, height, width), y[:, :, None].expand(count, height, width)], -1)
    texture = textures[_level((0.80 if large else 0.45) * unit)][layer[:, TEXTURE].long()].float()
    sprites = functional.grid_sample(texture, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    sprites[:, :3] *= layer[:, TINT, None, None]
    return sprites


def _offsets(center: Tensor, side: Tensor, length: int, spread: int) -> Tensor:
    """Where pixels lie in the texture, -1..1. Centres are spread over the middle `spread` pixels of the canvas."""
    pixels = torch.arange(length, device=center.device) + 0.5
    middle = length / 2 + (center - 0.5) * spread
    return (pixels[None] - middle) / side * 2


def _level(pixels: float) -> int:
    return next((side for side in sorted(LEVELS_PX) if pixels <= side * 1.12), max(LEVELS_PX))
