"""What stands in a picture and behind it, drawn at random; captions.py names it, layout.py places it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from training.data.palette import COLORS, COMMON_COLORS, LANDSCAPES, SHAPES, WHITE

Arrangement = Literal["single", "several", "pair", "empty"]
Size = Literal["small", "normal", "large"]


@dataclass(frozen=True, slots=True)
class Object:
    """An emoji, by its place in the vocabulary."""

    index: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A coloured shape, by its places in SHAPES and COLORS."""

    kind: int
    color: int


@dataclass(frozen=True, slots=True)
class Unspecified:
    """Pure white; a caption may leave it out."""


@dataclass(frozen=True, slots=True)
class Plain:
    color: int


@dataclass(frozen=True, slots=True)
class Gradient:
    top: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Outdoors:
    """One of LANDSCAPES."""

    landscape: int


Thing = Object | Shape
Background = Unspecified | Plain | Gradient | Outdoors


@dataclass(frozen=True, slots=True)
class Scene:
    """`count` is the number of equal things when they are several; a pair holds two things, left and right."""

    arrangement: Arrangement
    things: tuple[Thing, ...]
    background: Background
    count: int = 1
    size: Size = "normal"


def draw_scene(rng: Random, objects: int) -> Scene:
    """`objects` is the size of the vocabulary."""
    arrangement, things, count, size = _draw_things(rng, objects)
    background = _visible_behind(things, _draw_background(rng, arrangement), rng)
    return Scene(arrangement, things, background, count, size)


def draw_color(rng: Random) -> int:
    color = rng.randrange(len(COLORS))
    return rng.randrange(COMMON_COLORS) if rng.random() < 0.35 else color


def _draw_things(rng: Random, objects: int) -> tuple[Arrangement, tuple[Thing, ...], int, Size]:
    chance = rng.random()
    if chance < 0.64:
        thing, luck = _draw_thing(rng, objects, 0.93), rng.random()
        return "single", (thing,), 1, "small" if luck < 0.05 else "large" if luck < 0.10 else "normal"
    if chance < 0.78:
        return "several", (_draw_thing(rng, objects, 0.93),), rng.choice([2, 2, 3, 4]), "normal"
    if chance < 0.98:
        return "pair", (_draw_thing(rng, objects, 0.88), _draw_thing(rng, objects, 0.88)), 1, "normal"
    return "empty", (), 1, "normal"


def _draw_thing(rng: Random, objects: int, emoji_share: float) -> Thing:
    if rng.random() < emoji_share:
        return Object(rng.randrange(objects))
    return Shape(rng.randrange(len(SHAPES)), draw_color(rng))


def _draw_background(rng: Random, arrangement: Arrangement) -> Background:
    chance, empty = rng.random(), arrangement == "empty"
    if chance < 0.56 or (empty and chance < 0.80):
        return Plain(draw_color(rng))
    if chance < 0.80:
        return Unspecified()
    if chance < 0.94:
        return Outdoors(rng.randrange(len(LANDSCAPES)))
    return Gradient(*rng.sample(range(len(COLORS)), 2))


def _visible_behind(things: tuple[Thing, ...], background: Background, rng: Random) -> Background:
    """A shape would vanish in front of its own colour: it gets another plain one."""
    colors = {thing.color for thing in things if isinstance(thing, Shape)}
    if not colors or (isinstance(background, Plain) and background.color not in colors):
        return background
    color = rng.choice([color for color in range(COMMON_COLORS) if color not in colors])
    return Unspecified() if color == WHITE else Plain(color)
