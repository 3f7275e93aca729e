"""What a model can draw, in numbers. Prompts and seeds are fixed, so two models are asked the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import numpy as np
import torch
from torch import Tensor

from training.config import EvaluationConfig
from training.data.compositor import NATIVE_PX, compose
from training.data.english import named, plural, with_article
from training.data.layout import LARGE_LAYER, NORMAL, PAIR, Place, lay_out
from training.data.palette import COLORS, COMMON_COLORS, SHAPES, Rgb
from training.data.scenes import draw_scene
from training.data.textures import Textures
from training.data.vocabulary import Vocabulary
from training.painter import Painter, halved
from training.recognition import Catalogue, count_blobs

_WHITE: Rgb = (255, 255, 255)
_COMPACT = (
    "red apple,basketball,red heart,banana,balloon,tomato,rose,star,lemon,penguin,house,red circle,soccer ball,"
    "doughnut,egg,strawberry"
)
_NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True, slots=True)
class Score:
    """`value` is a share of 1 unless `unit` says otherwise; `samples` is how many pictures it is the mean of."""

    name: str
    value: float
    samples: int
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under examination and what it was trained to know."""

    painter: Painter
    vocabulary: Vocabulary
    textures: Textures

    def catalogue(self, layer: int = LARGE_LAYER, place: Place = NORMAL) -> Catalogue:
        return Catalogue(self.textures, len(self.vocabulary), layer, place)


def examine(subject: Subject, sizes: EvaluationConfig) -> list[Score]:
    parts: Sequence[Callable[[Subject, EvaluationConfig], list[Score]]] = (
        reconstruction,
        objects_on_colors,
        labels_and_aliases,
        pairs,
        shapes,
        counts,
    )
    return [score for part in parts for score in part(subject, sizes)]


def reconstruction(subject: Subject, sizes: EvaluationConfig) -> list[Score]:
    """Fresh scenes through the VAE and back."""
    rng = Random(999)
    scenes = [draw_scene(rng, len(subject.vocabulary)) for _ in range(sizes.scenes)]
    layouts = zip(*(lay_out(scene, rng, len(subject.vocabulary)) for scene in scenes), strict=True)
    device = subject.textures[NATIVE_PX].device
    backgrounds, layers = (torch.from_numpy(np.stack(arrays)).to(device) for arrays in layouts)
    pictures = compose(backgrounds, layers, subject.textures, NATIVE_PX, NATIVE_PX)
    error = ((subject.painter.reconstruct(pictures) - pictures) ** 2).mean((1, 2, 3)).clamp(min=1e-6)
    psnr = 10 * torch.log10(4 / error)
    return [
        Score("VAE PSNR, mean", psnr.mean().item(), len(psnr), "dB"),
        Score("VAE PSNR, worst", psnr.min().item(), len(psnr), "dB"),
    ]


def objects_on_colors(subject: Subject, sizes: EvaluationConfig) -> list[Score]:
    """For "a X on a COLOUR background", the border tells the colour and the picture the object."""
    rng = Random(5)
    asked = [(rng.randrange(len(subject.vocabulary)), rng.randrange(len(COLORS))) for _ in range(sizes.objects)]
    prompts = [
        f"{named(subject.vocabulary[index].label)} on {with_article(COLORS[color].name)} background"
        for index, color in asked
    ]
    pictures = subject.painter.paint(prompts, seed=0)
    objects, colors = (torch.tensor(column, device=pictures.device) for column in zip(*asked, strict=True))
    distance = _color_distances(_border(pictures))
    own = distance[torch.arange(len(asked)), colors]
    catalogue, ranks = subject.catalogue(), objects.new_empty(len(asked), len(subject.vocabulary))
    for color in set(colors.tolist()):
        ranks[colors == color] = catalogue.rank(pictures[colors == color], COLORS[color].rgb)
    return [
        Score("background colour right, of 24", _share(distance.argmin(1) == colors), len(asked)),
        Score("background colour, mean RGB distance", own.mean().item(), len(asked), "of 255"),
        Score("object right by pixels, top 1", _share(ranks[:, 0] == objects), len(asked)),
        Score("object right by pixels, top 5", _share((ranks[:, :5] == objects[:, None]).any(1)), len(asked)),
    ]


def labels_and_aliases(subject: Subject, sizes: EvaluationConfig) -> list[Score]:
    """Bare names; the background is then white."""
    rng = Random(11)
    labels = [(index, emoji.label) for index, emoji in enumerate(subject.vocabulary)]
    aliases = [(index, named(name)) for index, emoji in enumerate(subject.vocabulary) for name in emoji.aliases]
    scores = []
    for name, asked, limit, seed in (("label", labels, sizes.labels, 900), ("alias", aliases, sizes.aliases, 70)):
        chosen = asked if len(asked) <= limit else rng.sample(asked, limit)
        pictures = subject.painter.paint([prompt for _, prompt in chosen], seed)
        found = subject.catalogue().rank(pictures, _WHITE)[:, 0].tolist()
        right = [index == seen for (index, _), seen in zip(chosen, found, strict=True)]
        scores.append(Score(f"object right from its bare {name}", sum(right) / len(right), len(right)))
    return scores


def pairs(subject: Subject, sizes: EvaluationConfig) -> list[Score]:
    rng, objects = Random(12), len(subject.vocabulary)
    asked = torch.tensor([(rng.randrange(objects), rng.randrange(objects)) for _ in range(sizes.pairs)])
    names = [[named(subject.vocabulary[index].label) for index in pair] for pair in asked.tolist()]
    pictures = subject.painter.paint([f"{left} and {right}" for left, right in names], seed=300)
    halves = (slice(0, 31), slice(33, 64))
    right = [
        subject.catalogue(1, place).rank(pictures, _WHITE, half)[:, 0].cpu() == asked[:, side]
        for side, (place, half) in enumerate(zip(PAIR, halves, strict=True))
    ]
    return [Score("pair: left and right object right", _share(right[0] & right[1]), len(asked))]


def shapes(subject: Subject, sizes: EvaluationConfig) -> list[Score]:
    """Coloured shapes on another colour."""
    choices = [(s, a, b) for s, a, b in product(SHAPES, range(COMMON_COLORS), range(COMMON_COLORS)) if a != b]
    asked = Random(13).sample(choices, sizes.shapes)
    prompts = [
        f"{with_article(COLORS[inner].name)} {shape} on {with_article(COLORS[outer].name)} background"
        for shape, inner, outer in asked
    ]
    pictures = subject.painter.paint(prompts, seed=60)
    middle = pictures[:, :, 56:72, 56:72].flatten(2).median(2).values
    found = torch.stack([_color_distances(middle).argmin(1), _color_distances(_border(pictures)).argmin(1)], 1).cpu()
    right = (found == torch.tensor([(inner, outer) for _, inner, outer in asked])).all(1)
    return [Score("shape: its colour and the background's right", _share(right), len(right))]


def counts(subject: Subject, sizes: EvaluationConfig) -> list[Score]:
    """Two to four of something compact; strings of balloons and stems of roses fool the blob counter."""
    asked = list(product(_COMPACT.split(","), _NUMBERS))[: sizes.counts]
    prompts = [f"{_NUMBERS[count]} {plural(name)} on a gray background" for name, count in asked]
    pictures = halved(subject.painter.paint(prompts, seed=40))
    background = pictures[:, :, :2].flatten(2).median(2).values[:, :, None, None]
    masks = ((pictures - background).abs().amax(1) > 0.12).cpu()
    right = [count_blobs(mask) == count for mask, (_, count) in zip(masks, asked, strict=True)]
    return [Score("count of two to four right", sum(right) / len(right), len(right))]


def _border(pictures: Tensor, width: int = 4) -> Tensor:
    """Median colour of the outer pixels [N, 3]."""
    sides = (pictures[:, :, :width], pictures[:, :, -width:], pictures[..., :width], pictures[..., -width:])
    return torch.cat([side.flatten(2) for side in sides], 2).median(2).values


def _color_distances(colors: Tensor) -> Tensor:
    """RGB distances [N, 24] in 0..255 of colours [N, 3] in 0..1."""
    return torch.cdist(colors * 255, torch.tensor([color.rgb for color in COLORS], device=colors.device).float())


def _share(right: Tensor) -> float:
    return right.float().mean().item()
