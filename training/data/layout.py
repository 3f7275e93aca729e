"""A scene as numbers that the compositor draws from: where everything stands, with a little jitter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from training.data.palette import COLORS, LANDSCAPES, WHITE
from training.data.scenes import Background, Gradient, Object, Outdoors, Plain, Scene, Thing

Floats = NDArray[np.float32]

# A background: colours in 0..255, the horizon as a share of the height (above 1.5: no horizon at all), stars 0 or 1.
TOP, MIDDLE, HORIZON, GROUND_TOP, GROUND_BOTTOM, STARS = (
    slice(0, 3),
    slice(3, 6),
    6,
    slice(7, 10),
    slice(10, 13),
    13,
)
BACKGROUND_NUMBERS = 14
NO_HORIZON = 2.0

# A layer: texture, centre and size in units of the canvas, colour in 0..1. A texture below 0 leaves the layer out.
TEXTURE, X, Y, SIZE, TINT = 0, 1, 2, 3, slice(4, 7)
LAYER_NUMBERS = 7
# The first layer holds a large object, whose texture is sampled finely; the others hold small ones.
LARGE_LAYER, LAYERS = 0, 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thing stands: centre and size in units of the canvas, and how far the centre may move."""

    x: float
    y: float
    size: float
    jitter: float = 0.015


NORMAL = Place(0.5, 0.5, 0.80, 0.022)
LARGE = replace(NORMAL, size=0.97)
SMALL = replace(NORMAL, size=0.44)
PAIR = (Place(0.265, 0.5, 0.46), Place(0.735, 0.5, 0.46))
_TOP_ROW = (Place(0.265, 0.265, 0.44), Place(0.735, 0.265, 0.44))
_BOTTOM_ROW = (Place(0.265, 0.735, 0.44), Place(0.735, 0.735, 0.44))
PLACES = {2: PAIR, 3: (Place(0.5, 0.265, 0.44), *_BOTTOM_ROW), 4: (*_TOP_ROW, *_BOTTOM_ROW)}

_COLOR_JITTER = 5.0


def lay_out(scene: Scene, rng: Random, objects: int) -> tuple[Floats, Floats]:
    """A background [14] and its layers [5, 7]; shapes follow the `objects` emoji in the textures."""
    return _background(scene.background, rng), _layers(scene, rng, objects)


def empty_layers() -> Floats:
    layers = np.zeros((LAYERS, LAYER_NUMBERS), np.float32)
    layers[:, TEXTURE] = -1
    return layers


def plain_background(rgb: Sequence[float]) -> Floats:
    background = np.zeros(BACKGROUND_NUMBERS, np.float32)
    background[TOP] = background[MIDDLE] = rgb
    background[HORIZON] = NO_HORIZON
    return background


def _background(kind: Background, rng: Random) -> Floats:
    match kind:
        case Plain(color):
            jittered = _jitter(COLORS[color].rgb, rng)
            return plain_background(COLORS[WHITE].rgb if color == WHITE else jittered)
        case Gradient(top, bottom):
            background = plain_background(_jitter(COLORS[top].rgb, rng))
            background[MIDDLE] = _jitter(COLORS[bottom].rgb, rng)
            return background
        case Outdoors(landscape):
            return _landscape(landscape, rng)
    return plain_background((255, 255, 255))


def _landscape(index: int, rng: Random) -> Floats:
    landscape, light = LANDSCAPES[index], rng.uniform(-6, 6)
    background = np.zeros(BACKGROUND_NUMBERS, np.float32)
    for place, color in zip((TOP, MIDDLE, GROUND_TOP, GROUND_BOTTOM), (*landscape.sky, *landscape.ground), strict=True):
        background[place] = np.asarray(color, np.float32) + light
    background[HORIZON] = landscape.horizon + rng.uniform(-0.02, 0.02) if landscape.horizon < 1 else NO_HORIZON
    background[STARS] = landscape.stars
    return background


def _layers(scene: Scene, rng: Random, objects: int) -> Floats:
    layers = empty_layers()
    if scene.arrangement == "single":
        layer, place = {"small": (1, SMALL), "large": (LARGE_LAYER, LARGE), "normal": (LARGE_LAYER, NORMAL)}[scene.size]
        layers[layer] = _placed(scene.things[0], place, rng, objects)
    elif scene.arrangement != "empty":
        things = scene.things if scene.arrangement == "pair" else scene.things * scene.count
        for layer, (thing, place) in enumerate(zip(things, PLACES[len(things)], strict=True), start=1):
            layers[layer] = _placed(thing, place, rng, objects)
    return layers


def _placed(thing: Thing, place: Place, rng: Random, objects: int) -> Sequence[float]:
    if isinstance(thing, Object):
        texture, tint, size = thing.index, (1.0, 1.0, 1.0), place.size
    else:
        red, green, blue = COLORS[thing.color].rgb
        texture, tint, size = objects + thing.kind, (red / 255, green / 255, blue / 255), place.size * 0.86
    x, y = (center + rng.uniform(-place.jitter, place.jitter) for center in (place.x, place.y))
    return (texture, x, y, size * rng.uniform(0.96, 1.04), *tint)


def _jitter(rgb: Sequence[float], rng: Random) -> list[float]:
    return [min(255.0, max(0.0, value + rng.uniform(-_COLOR_JITTER, _COLOR_JITTER))) for value in rgb]
