"""The colours, shapes and landscapes that a picture may have besides its emoji."""

from __future__ import annotations

from dataclasses import dataclass

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Color:
    name: str
    rgb: Rgb
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Landscape:
    """Two vertical gradients that meet at `horizon`, a share of the height (1: no ground)."""

    name: str
    sky: tuple[Rgb, Rgb]
    horizon: float
    ground: tuple[Rgb, Rgb]
    phrases: tuple[str, ...]
    stars: bool = False


SHAPES = ("circle", "square", "triangle", "hexagon", "oval", "rhombus")

# The first twelve are drawn more often, and only they colour what stands behind a shape.
COMMON_COLORS = 12
COLORS = (
    Color("black", (18, 18, 20)),
    Color("white", (250, 250, 250)),
    Color("gray", (128, 130, 134), ("grey",)),
    Color("red", (216, 34, 36)),
    Color("orange", (247, 130, 22)),
    Color("yellow", (252, 214, 40)),
    Color("green", (38, 160, 70)),
    Color("blue", (36, 92, 224)),
    Color("purple", (124, 54, 196), ("violet",)),
    Color("pink", (246, 140, 186)),
    Color("brown", (116, 70, 40)),
    Color("cyan", (54, 206, 220), ("turquoise", "aqua")),
    Color("dark blue", (18, 28, 92), ("navy", "navy blue")),
    Color("light blue", (150, 206, 250), ("sky blue", "pale blue")),
    Color("dark green", (14, 74, 44), ("forest green",)),
    Color("light green", (160, 226, 122), ("lime", "lime green", "pale green")),
    Color("beige", (238, 222, 190), ("cream",)),
    Color("dark red", (110, 14, 26), ("maroon", "burgundy")),
    Color("magenta", (214, 36, 150), ("hot pink", "fuchsia")),
    Color("lavender", (204, 188, 246), ("lilac", "light purple")),
    Color("teal", (10, 120, 124)),
    Color("dark gray", (62, 64, 70), ("dark grey", "charcoal")),
    Color("light gray", (206, 208, 212), ("light grey", "silver")),
    Color("gold", (206, 160, 40), ("golden",)),
)
WHITE = 1

LANDSCAPES = (
    Landscape(
        "grass",
        ((120, 190, 250), (205, 232, 252)),
        0.62,
        ((110, 190, 70), (60, 140, 50)),
        (
            "on the grass",
            "in a meadow",
            "in the garden",
            "in a park",
            "on a green field",
            "in the park",
            "on a meadow",
            "in nature",
            "outside in the grass",
        ),
    ),
    Landscape(
        "snow",
        ((150, 190, 230), (222, 234, 246)),
        0.60,
        ((250, 252, 255), (226, 236, 248)),
        ("in the snow", "in a snowy landscape", "in winter", "on the snow", "on a snowy day", "in the arctic"),
    ),
    Landscape(
        "desert",
        ((110, 185, 240), (240, 226, 190)),
        0.62,
        ((232, 190, 110), (206, 150, 76)),
        ("in the desert", "in a sandy desert", "on a sand dune", "in the sahara"),
    ),
    Landscape(
        "beach",
        ((70, 170, 240), (60, 150, 220)),
        0.55,
        ((246, 222, 160), (232, 200, 130)),
        ("on the beach", "on a sandy beach", "at the beach", "by the sea", "at the seaside"),
    ),
    Landscape(
        "ocean",
        ((60, 170, 225), (20, 90, 170)),
        1.00,
        ((12, 50, 110), (12, 50, 110)),
        ("in the ocean", "underwater", "under the sea", "in the sea", "in the water", "under water"),
    ),
    Landscape(
        "sky",
        ((70, 150, 240), (200, 230, 252)),
        1.00,
        ((200, 230, 252), (200, 230, 252)),
        ("in the sky", "flying in the sky", "high in the sky", "in the air", "in a clear blue sky"),
    ),
    Landscape(
        "night",
        ((10, 14, 50), (40, 44, 110)),
        0.72,
        ((22, 40, 44), (10, 20, 24)),
        ("at night", "in the night", "under the stars", "under a starry sky", "in the dark night", "at midnight"),
        stars=True,
    ),
    Landscape(
        "space",
        ((6, 6, 18), (24, 12, 50)),
        1.00,
        ((24, 12, 50), (24, 12, 50)),
        ("in space", "in outer space", "floating in space", "among the stars", "in the galaxy"),
        stars=True,
    ),
    Landscape(
        "sunset",
        ((92, 44, 130), (252, 150, 70)),
        0.66,
        ((90, 40, 60), (40, 20, 40)),
        ("at sunset", "at dusk", "at sunrise", "in the evening light", "at dawn"),
    ),
    Landscape(
        "table",
        ((236, 226, 210), (226, 212, 192)),
        0.62,
        ((172, 116, 66), (132, 84, 44)),
        ("on a wooden table", "on a table", "on the table", "on a wooden floor", "on a desk"),
    ),
    Landscape(
        "forest",
        ((120, 180, 130), (40, 100, 60)),
        0.70,
        ((64, 92, 40), (40, 60, 28)),
        ("in the forest", "in a forest", "in the woods", "in the jungle", "among the trees"),
    ),
)
