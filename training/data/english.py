"""The little grammar that captions need."""

from __future__ import annotations

import re

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "leaf": "leaves",
    "knife": "knives",
    "wolf": "wolves",
    "loaf": "loaves",
    "elf": "elves",
    "octopus": "octopuses",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
}
_UNCHANGING = {"fish", "sheep", "deer", "bison", "shrimp", "squid", "scissors", "pants"}
_ALWAYS_PLURAL = """
    eyes lungs jeans shorts socks gloves glasses sunglasses goggles cherries grapes peanuts blueberries pancakes books
    scissors chopsticks skis maracas bricks flames headphones noodles footprints hands hearts fries chips swords dollars
    chains binoculars sparkles dice drums
"""
_PLURAL_NAMES = frozenset(_ALWAYS_PLURAL.split())
_CONSONANT_VOWELS = ("uni", "u.", "ufo", "euro", "one")
_TAIL = re.compile(r"^(.*?)( (?:with|of|in|without|on|covering|blowing|screaming|from|showing|behind|tilted) .*)$")


def with_article(noun: str) -> str:
    vowel = noun[0] in "aeiou" and not noun.startswith(_CONSONANT_VOWELS)
    return ("an " if vowel else "a ") + noun


def is_plural(noun: str) -> bool:
    head = re.split(r" (?:with|of|in|without|on) ", noun)[0].split(" ")[-1]
    return head in _PLURAL_NAMES


def plural(noun: str) -> str:
    """'cup of coffee' -> 'cups of coffee'"""
    match = _TAIL.match(noun)
    phrase, tail = (match[1], match[2]) if match else (noun, "")
    *modifiers, head = phrase.split(" ")
    return " ".join([*modifiers, _plural_word(head)]) + tail


def named(noun: str) -> str:
    """The noun as a caption begins with it: 'a fox', 'grapes'."""
    return noun if is_plural(noun) else with_article(noun)


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _UNCHANGING or (word.endswith("s") and not word.endswith(("ss", "us"))):
        return word
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|ch|sh|z)$", word) else "s")
