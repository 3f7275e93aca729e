"""Input pictures that are the same in every run: colours, edges and noise, in other sizes than they are drawn in."""

from __future__ import annotations

from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from serve.inputs import Input, source
from serve.settings import LimitSettings

KNOWN: dict[str, Input] = {}  # by name, for the store and for the reference


def picture(seed: int, width: int, height: int) -> str:
    """The name of an input."""
    return _inputs(seed, width, height)[0].name


def mask(seed: int, width: int, height: int) -> str:
    """The name of one for the picture of this seed."""
    return _inputs(seed, width, height)[1].name


def opened(name: str) -> Image.Image:
    return Image.open(BytesIO(KNOWN[name].data))


@cache
def _inputs(seed: int, width: int, height: int) -> tuple[Input, Input]:
    own = (width + 37, height + 11)
    fitted = source(_file(_painted(seed, *own)), _file(_spots(seed, *own)), LimitSettings()).fitted(width, height)
    assert fitted[1] is not None
    KNOWN.update({one.name: one for one in fitted if one is not None})
    return fitted[0], fitted[1]


def _painted(seed: int, width: int, height: int) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height))
    noise = random.integers(0, 40, (height, width, 3))
    image = Image.fromarray((np.asarray(coarse) // 2 + noise).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill="yellow")
    return image


def _spots(seed: int, width: int, height: int) -> Image.Image:
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2, 24 + seed % 16), fill=255)
    draw.ellipse((width // 2, height // 3, width - 5, height - 3), fill=255)
    return image


def _file(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
