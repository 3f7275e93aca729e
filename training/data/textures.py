"""Pictures of emoji and shapes as GPU textures."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.data.palette import SHAPES
from training.data.vocabulary import Vocabulary, picture_path

PICTURE_PX = 256
LEVELS_PX = (256, 128, 64, 32)

# Side in pixels -> [textures, 4, side, side], premultiplied RGBA in 0..1: the emoji, then the shapes.
Textures = dict[int, torch.Tensor]


def load_textures(folder: Path, vocabulary: Vocabulary, device: torch.device) -> Textures:
    count = len(vocabulary) + len(SHAPES)
    levels = {side: np.empty((count, 4, side, side), np.float16) for side in LEVELS_PX}

    def fill(index: int) -> None:
        whole = _premultiplied(_picture(folder, vocabulary, index))
        for side, textures in levels.items():
            step = PICTURE_PX // side
            textures[index] = whole.reshape(4, side, step, side, step).mean((2, 4))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fill, range(count)))
    return {side: torch.from_numpy(textures).to(device) for side, textures in levels.items()}


def _picture(folder: Path, vocabulary: Vocabulary, index: int) -> Image.Image:
    if index >= len(vocabulary):
        return _shape(SHAPES[index - len(vocabulary)])
    with Image.open(picture_path(folder, vocabulary[index].file)) as picture:
        rgba = picture.convert("RGBA")
    return (
        rgba
        if rgba.size == (PICTURE_PX, PICTURE_PX)
        else rgba.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    )


def _premultiplied(picture: Image.Image) -> NDArray[np.float32]:
    pixels = np.asarray(picture, np.float32) / 255
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1).transpose(2, 0, 1)


def _shape(name: str) -> Image.Image:
    """White on nothing; drawn four times too large for smooth edges."""
    side = PICTURE_PX * 4
    mask = Image.new("L", (side, side), 0)
    draw, center = ImageDraw.Draw(mask), side / 2
    match name:
        case "circle":
            draw.ellipse((40, 40, side - 40, side - 40), fill=255)
        case "oval":
            draw.ellipse((20, 220, side - 20, side - 220), fill=255)
        case "square":
            draw.rectangle((90, 90, side - 90, side - 90), fill=255)
        case "triangle":
            draw.polygon([(center, 60), (side - 30, side - 110), (30, side - 110)], fill=255)
        case "rhombus":
            draw.polygon([(center, 20), (side - 120, center), (center, side - 20), (120, center)], fill=255)
        case "hexagon":
            angles = [math.pi / 3 * corner for corner in range(6)]
            radius = center - 40
            draw.polygon([(center + radius * math.cos(a), center + radius * math.sin(a)) for a in angles], fill=255)
    shape = Image.new("RGBA", (PICTURE_PX, PICTURE_PX), (255, 255, 255, 255))
    shape.putalpha(mask.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX))
    return shape
