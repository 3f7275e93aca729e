"""Captions for scenes: many ways to say the same, among words that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from random import Random
from string import ascii_lowercase

import yaml

from training.data.english import is_plural, plural, with_article
from training.data.palette import COLORS, LANDSCAPES, SHAPES
from training.data.scenes import Background, Gradient, Object, Outdoors, Plain, Scene, Size, Thing
from training.data.vocabulary import Vocabulary

PHRASES_FILE = Path(__file__).parent / "phrases.yaml"

_COUNTS = {2: ("two", "two", "2", "a pair of"), 3: ("three", "three", "3"), 4: ("four", "four", "4")}
_SIZES: dict[Size, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "large": ("big", "huge", "large", "giant"),
}
_PAIRS = ("{0} and {1}",) * 5 + (
    "{0} next to {1}",
    "{0} with {1}",
    "{0} beside {1}",
    "{0}, {1}",
    "{0} on the left and {1} on the right",
    "{0} to the left of {1}",
)
_ON_WHITE = ("",) * 6 + ("on white", "on a white background", "white background")
_ON_COLOR = ("on {a} background",) * 6 + (
    "on {color} background",
    "with {a} background",
    "in front of {a} background",
    "against {a} background",
    "on {a} backdrop",
    "{color} background",
    "in front of {a} wall",
    "over {a} background",
    ", {color} background",
    ", background {color}",
    "on {color}",
)
_ON_GRADIENT = (
    "on {a} to {bottom} gradient background",
    "on a gradient from {top} to {bottom}",
    "with a gradient background from {top} to {bottom}",
    "on {a} and {bottom} gradient background",
)
_EMPTY_LANDSCAPES = ("an empty landscape", "nothing", "an empty scene", "a landscape")


class Length(IntEnum):
    """How much is said beside the scene itself."""

    SHORT = 0
    MEDIUM = 1
    LONG = 2


@dataclass(frozen=True, slots=True)
class Phrases:
    adjectives: list[str]
    openings: list[str]
    endings: list[str]
    poses: list[str]
    sentences: list[str]
    words: list[str]


@cache
def phrases() -> Phrases:
    return Phrases(**yaml.safe_load(PHRASES_FILE.read_text(encoding="utf-8")))


class Captioner:
    def __init__(self, vocabulary: Vocabulary, rng: Random) -> None:
        self._vocabulary = vocabulary
        self._rng = rng
        self._phrases = phrases()

    def caption(self, scene: Scene, length: Length = Length.SHORT) -> str:
        text = self._decorate(self._core(scene))
        if length > Length.SHORT:
            text = self._surround(text, length)
        elif self._chance(0.05):
            text += " " + self._ramble(1, 4)
        text = text.replace(" ,", ",").strip()
        return text + "." if self._chance(0.08) else text

    def _core(self, scene: Scene) -> str:
        """The part that says what the picture shows."""
        things = self._things(scene)
        background = self._background(scene.background)
        if scene.arrangement == "empty":
            return self._nothing(scene.background, background)
        if self._chance(0.10):
            things += " " + self._pick(self._phrases.poses)
        if self._chance(0.06) and background and not background.startswith(","):
            return f"{background}, {things}" if self._chance(0.5) else f"{background} {things}"
        return f"{things} {background}".strip()

    def _things(self, scene: Scene) -> str:
        if scene.arrangement == "single":
            return self._one(scene.things[0], scene.size)
        if scene.arrangement == "several":
            return self._several(scene.things[0], scene.count)
        if scene.arrangement == "pair":
            left, right = self._one(scene.things[0]), self._one(scene.things[1])
            return self._pick(_PAIRS).format(left, right)
        return ""

    def _one(self, thing: Thing, size: Size = "normal") -> str:
        noun = self._qualify(self._name(thing, with_keywords=True), size)
        chance = self._rng.random()
        if is_plural(noun):
            return noun if chance < 0.7 else ("some " if chance < 0.9 else "the ") + noun
        if chance < 0.62:
            return with_article(noun)
        return noun if chance < 0.9 else ("the " if chance < 0.96 else "one ") + noun

    def _several(self, thing: Thing, count: int) -> str:
        noun = self._qualify(self._name(thing, with_keywords=False), "normal")
        return f"{self._pick(_COUNTS[count])} {plural(noun)}"

    def _name(self, thing: Thing, with_keywords: bool) -> str:
        if not isinstance(thing, Object):
            return f"{self._color(thing.color)} {SHAPES[thing.kind]}"
        emoji, chance = self._vocabulary[thing.index], self._rng.random()
        if chance < 0.32 and emoji.aliases:
            return self._pick(emoji.aliases)
        if chance > 0.94 and emoji.keywords and with_keywords:
            return self._pick(emoji.keywords)
        return emoji.label

    def _qualify(self, noun: str, size: Size) -> str:
        if size in _SIZES:
            return f"{self._pick(_SIZES[size])} {noun}"
        return f"{self._pick(self._phrases.adjectives)} {noun}" if self._chance(0.12) else noun

    def _color(self, index: int) -> str:
        color = COLORS[index]
        return self._pick(color.synonyms) if color.synonyms and self._chance(0.3) else color.name

    def _background(self, background: Background) -> str:
        match background:
            case Plain(color):
                name = self._color(color)
                return self._pick(_ON_COLOR).format(color=name, a=with_article(name))
            case Gradient(first, second):
                top, bottom = self._color(first), self._color(second)
                return self._pick(_ON_GRADIENT).format(top=top, bottom=bottom, a=with_article(top))
            case Outdoors(landscape):
                return self._pick(LANDSCAPES[landscape].phrases)
        return self._pick(_ON_WHITE)

    def _nothing(self, background: Background, phrase: str) -> str:
        if isinstance(background, Outdoors):
            return f"{self._pick(_EMPTY_LANDSCAPES)} {phrase}"
        bare = phrase.replace("on a ", "").replace("on an ", "").strip(", ")
        article = phrase.replace("on a ", "a ").strip(", ")
        return self._pick((article, f"nothing {phrase}", f"an empty picture {phrase}", f"a plain {bare}"))

    def _decorate(self, text: str) -> str:
        """Openings, endings and noise, as people write prompts."""
        if self._chance(0.16):
            text = f"{self._pick(self._phrases.openings)} {text}"
        if self._chance(0.12):
            count = self._rng.choice((1, 1, 2, 3))
            text += ", " + ", ".join(self._rng.sample(self._phrases.endings, count))
        if self._chance(0.03):
            text += " " + "".join(self._pick(ascii_lowercase) for _ in range(self._rng.randint(2, 8)))
        return text

    def _surround(self, text: str, length: Length) -> str:
        """Puts the caption first, or anywhere, among sentences that say nothing about the picture."""
        few, many = self._rng.randint(1, 3), self._rng.randint(4, 7)
        count = few if length == Length.MEDIUM else many
        parts = [
            self._pick(self._phrases.sentences) if self._chance(0.7) else self._ramble(4, 10) for _ in range(count)
        ]
        parts.insert(0 if self._chance(0.65) else self._rng.randint(0, count), text)
        return self._pick((". ", ", ")).join(parts)

    def _ramble(self, fewest: int, most: int) -> str:
        return " ".join(self._pick(self._phrases.words) for _ in range(self._rng.randint(fewest, most)))

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _pick(self, choices: Sequence[str]) -> str:
        return self._rng.choice(choices)
