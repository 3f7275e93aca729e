"""Tells by pixels which object a picture shows: the nearest of all, drawn on the same background."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.data.compositor import NATIVE_PX, compose
from training.data.layout import LAYER_NUMBERS, LAYERS, TEXTURE, Place, plain_background
from training.data.palette import Rgb
from training.data.textures import Textures
from training.painter import halved

_SHIFT_PX = 2
_ROWS = 64
_ALL = slice(None)


class Catalogue:
    """Every object at one place, as seen at 64 x 64: its own light, and how much of the background it lets through."""

    def __init__(self, textures: Textures, objects: int, layer: int, place: Place) -> None:
        self._textures = textures
        self._layers = _alone(objects, layer, place).to(textures[NATIVE_PX].device)
        self._light = self._render(0)
        self._clear = (self._render(255) - self._light).mean(1, keepdim=True)

    def rank(self, pictures: Tensor, background: Rgb, columns: slice = _ALL) -> Tensor:
        """Objects from the nearest to the farthest [N, objects], for pictures [N, 3, 128, 128] in 0..1.

        Objects may be off by two pixels; `columns` of the 64 are compared.
        """
        seen = halved(pictures)[..., columns].flatten(1)
        color = torch.tensor(background, device=seen.device).view(1, 3, 1, 1) / 255
        light, clear = self._padded()
        nearest = torch.full((len(seen), len(self._layers)), torch.inf, device=seen.device)
        for down in range(2 * _SHIFT_PX + 1):
            for right in range(2 * _SHIFT_PX + 1):
                window = (..., slice(down, down + NATIVE_PX // 2), slice(right, right + NATIVE_PX // 2))
                expected = (light[window] + clear[window] * color)[..., columns].flatten(1)
                nearest = torch.minimum(nearest, torch.cdist(seen, expected))
        return nearest.argsort(1)

    def _padded(self) -> tuple[Tensor, Tensor]:
        around = (_SHIFT_PX,) * 4
        return functional.pad(self._light, around), functional.pad(self._clear, around, value=1.0)

    def _render(self, gray: float) -> Tensor:
        background = torch.from_numpy(plain_background((gray, gray, gray))).to(self._layers.device)
        pictures = [
            halved(compose(background.expand(len(part), -1), part, self._textures, NATIVE_PX, NATIVE_PX))
            for part in torch.split(self._layers, _ROWS)
        ]
        return (torch.cat(pictures) + 1) / 2


def _alone(objects: int, layer: int, place: Place) -> Tensor:
    """Layers [objects, 5, 7] with one object each."""
    layers = torch.zeros(objects, LAYERS, LAYER_NUMBERS)
    layers[..., TEXTURE] = -1
    layers[:, layer] = torch.tensor([0, place.x, place.y, place.size, 1, 1, 1])
    layers[:, layer, TEXTURE] = torch.arange(objects).float()
    return layers


def count_blobs(mask: Tensor, smallest: int = 12) -> int:
    """Connected regions of a boolean mask [H, W] that have at least `smallest` pixels."""
    left = {(row, column) for row, column in mask.nonzero().tolist()}
    blobs = 0
    while left:
        edge, size = [left.pop()], 0
        while edge:
            row, column = edge.pop()
            size += 1
            near = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & left
            left -= near
            edge += near
        blobs += size >= smallest
    return blobs
