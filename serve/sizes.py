"""What a size may be: `WIDTHxHEIGHT` in pixels, in steps of 16, within a model's longest side."""

from __future__ import annotations

import re

MIN_SIDE_PX = 64
MAX_ASPECT = 3

_SIZE = re.compile("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class WrongSize(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def own_size(width: int, height: int, cap_px: int) -> tuple[int, int]:
    """The size to draw a picture of so many pixels in: its own, made to fit. Raises WrongSize."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise WrongSize(f"the ratio of the sides is over {MAX_ASPECT}:1")
    scale = min(1.0, cap_px / max(width, height))
    scale = max(scale, MIN_SIDE_PX / min(width, height))
    sides = [max(MIN_SIDE_PX, int(side * scale) // 16 * 16) for side in (width, height)]
    long = min(cap_px, MAX_ASPECT * min(sides))  # rounding down the short side may have stretched it
    return min(sides[0], long), min(sides[1], long)


def parse_size(text: str, cap_px: int) -> tuple[int, int]:
    """Width and height. Raises WrongSize."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise WrongSize("not WIDTHxHEIGHT")
    width, height = int(match[1]), int(match[2])
    short, long = sorted((width, height))
    if long > cap_px:
        raise WrongSize(f"{long} is over this model's {cap_px} pixels")
    if short < MIN_SIDE_PX:
        raise WrongSize(f"{short} is under {MIN_SIDE_PX} pixels")
    if short % 16 or long % 16:
        raise WrongSize("both sides must be multiples of 16")
    if long > MAX_ASPECT * short:
        raise WrongSize(f"the ratio of the sides is over {MAX_ASPECT}:1")
    return width, height
