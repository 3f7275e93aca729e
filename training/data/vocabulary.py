"""Which objects the model can draw and what each may be called: one name belongs to one object."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

OBJECTS_FILE = Path(__file__).parent / "objects.yaml"
VOCABULARY_NAME = "objects.json"


@dataclass(frozen=True, slots=True)
class Emoji:
    """`label` is its best name, `file` the stem of its picture; captions use all three kinds of names."""

    label: str
    file: str
    aliases: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


Vocabulary = tuple[Emoji, ...]


def select(emojibase: Iterable[Mapping[str, Any]], pictures: Collection[str]) -> Vocabulary:
    """The objects of objects.yaml, found in emojibase's `data.json` and among the stems of the pictures."""
    chosen = yaml.safe_load(OBJECTS_FILE.read_text(encoding="utf-8"))
    names: dict[str, list[str]] = chosen["objects"]
    entries = {entry["label"]: entry for entry in emojibase if entry["label"] in names}
    files = {label: _picture(entry["hexcode"], pictures) for label, entry in entries.items()}
    if missing := [label for label in names if files.get(label) is None]:
        raise LookupError(f"{len(missing)} objects have no name or picture in the packages: {', '.join(missing[:5])}")
    keywords = _own_keywords([entries[label].get("tags", []) for label in names], names, chosen["ignored_keywords"])
    return tuple(
        Emoji(normalize(label), str(files[label]), tuple(aliases), own)
        for (label, aliases), own in zip(names.items(), keywords, strict=True)
    )


def normalize(name: str) -> str:
    name = name.lower().replace("’", "'").replace("ñ", "n").replace("“", "").replace("”", "")
    return re.sub(r"\s+", " ", name).strip()


def save(vocabulary: Vocabulary, folder: Path) -> None:
    lines = ",\n".join(json.dumps(asdict(emoji), ensure_ascii=False) for emoji in vocabulary)
    (folder / VOCABULARY_NAME).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load(folder: Path) -> Vocabulary:
    path = folder / VOCABULARY_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run `python -m training.data.fetch --to {folder}` first")
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Emoji(row["label"], row["file"], tuple(row["aliases"]), tuple(row["keywords"])) for row in rows)


def picture_path(folder: Path, stem: str) -> Path:
    return folder / "pictures" / f"{stem}.webp"


def _picture(hexcode: str, pictures: Collection[str]) -> str | None:
    code = hexcode.lower()
    return next((stem for stem in (code, code.replace("-fe0f", ""), code + "-fe0f") if stem in pictures), None)


def _own_keywords(
    keywords: list[list[str]], names: Mapping[str, list[str]], ignored: Collection[str]
) -> list[tuple[str, ...]]:
    """At most two keywords an object: those that no other object has and that are nobody's name."""
    taken = {normalize(label) for label in names} | {alias for aliases in names.values() for alias in aliases}
    usable = [list(dict.fromkeys(word for word in map(normalize, of) if _usable(word, ignored))) for of in keywords]
    owners = Counter(word for words in usable for word in words)
    return [tuple(word for word in words if owners[word] == 1 and word not in taken)[:2] for words in usable]


def _usable(word: str, ignored: Collection[str]) -> bool:
    plain = re.match(r"^[a-z][a-z' \-]*$", word) is not None
    return plain and len(word) >= 3 and len(word.split()) <= 2 and word not in ignored
