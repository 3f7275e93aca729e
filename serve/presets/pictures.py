"""The small pictures that stand for presets and styles: files beside the presets file, as hot as it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from serve.presets.file import Style

MAX_BYTES = 65_536  # a page shows dozens of them at once
KEPT = 256

_TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A file as it is; `tag` names its content."""

    data: bytes
    media_type: str
    tag: str


def picture_of(entry: Style, presets: Path | None) -> Picture | None:
    """None where the entry names no picture, or one that is not there or too large. Reads a changed file again."""
    if entry.picture is None or presets is None:
        return None
    path = presets.parent / entry.picture
    try:
        state = path.stat()
    except OSError:
        return None
    return _read(path, state.st_mtime_ns, state.st_size) if 0 < state.st_size <= MAX_BYTES else None


@lru_cache(KEPT)
def _read(path: Path, _changed_ns: int, _bytes: int) -> Picture:
    data = path.read_bytes()
    return Picture(data, _TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:16])
