"""Finds words that a preset refuses, however they are written, and says where in the original they stand."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from serve.errors import Fragment

# Scripts written without spaces between words: a fragment in them is found anywhere.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U000323af]"
)


@dataclass(frozen=True, slots=True)
class Folded:
    """`text` without case, width and other variants; `spans[i]` is where its character i was, as [start, end)."""

    text: str
    spans: tuple[tuple[int, int], ...]


def fold(original: str) -> Folded:
    """NFKC and casefold. White space of any length is one space, characters that nobody sees are dropped."""
    text: list[str] = []
    spans: list[tuple[int, int]] = []
    for start, end in _pieces(original):
        for char in _variantless(original[start:end]):
            if char == " " and text and text[-1] == " ":
                spans[-1] = (spans[-1][0], end)
                continue
            text.append(char)
            spans.append((start, end))
    return Folded("".join(text), tuple(spans))


def first_banned(original: str, banned: Iterable[str]) -> Fragment | None:
    """The leftmost of the banned fragments in a text, the longer one where two begin together.

    A fragment is found as whole words: beside an end of it that is a letter or digit there may be no other one. A `*`
    at its end lets the word go on. In scripts without spaces there are no words, and it is found anywhere.
    """
    folded = fold(original)
    found = [at for fragment in banned for at in _places(folded.text, fragment)]
    if not found:
        return None
    first, last = min(found, key=lambda at: (at[0], -at[1]))
    start, end = folded.spans[first][0], folded.spans[last - 1][1]
    return Fragment(start, end, original[start:end])


def _places(text: str, fragment: str) -> Iterator[tuple[int, int]]:
    wanted, open_end = fold(fragment.removesuffix("*")).text.strip(), fragment.endswith("*")
    start = text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        if not _joined(text, start) and (open_end or not _joined(text, end)):
            yield start, end
        start = text.find(wanted, start + 1)


def _joined(text: str, at: int) -> bool:
    """Whether one word goes on across this place."""
    return 0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at])


def _in_word(char: str) -> bool:
    return (char.isalnum() or unicodedata.category(char) == "Mn") and not _UNSPACED.match(char)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Cuts where normalising the sides alone gives the same as normalising them together."""
    start = 0
    for at in range(1, len(text) + 1):
        if at == len(text) or text[at].isascii() or not _combine(text[start:at], text[at]):
            yield start, at
            start = at


def _combine(piece: str, char: str) -> bool:
    both = unicodedata.normalize("NFKC", piece + char)
    return both != unicodedata.normalize("NFKC", piece) + unicodedata.normalize("NFKC", char)


def _variantless(piece: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", piece).casefold())
    return "".join(" " if char.isspace() else char for char in folded if not _unseen(char))


def _unseen(char: str) -> bool:
    """Format characters, variation selectors and fillers, which would hide a word from its reader's filter."""
    return unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f" or char in "\u034f\u115f\u1160\u3164"
