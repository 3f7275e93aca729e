"""Finished pictures that answer identical requests: which request is identical, and where its pictures are. Pure."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TLRUCache

from serve.messages import ImageRequest, StoredImage, Submission
from serve.settings import CacheSettings

ENTRY_BYTES = 1024  # of memory, counted with the pictures: tiny ones must not fill it

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The pictures of a job, which ended at this Unix time."""

    images: tuple[StoredImage, ...]
    at: float

    @property
    def bytes(self) -> int:
        return ENTRY_BYTES + sum(image.bytes for image in self.images)


def key_of(request: ImageRequest, engine: str) -> str:
    """Equal for requests that one engine answers with the same bytes; hexadecimal."""
    canonical = json.dumps({"engine": engine, "request": request.said()}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def cache_key(submission: Submission, engine: str, settings: CacheSettings) -> str | None:
    """None where its result is of no use to others: its seed is random, or nobody knows yet what would draw it."""
    return key_of(submission.request, engine) if settings.enabled and submission.seeded and engine else None


class CacheIndex:
    """Least recently used entries go first, and those past their time. Who may use an entry is part of its key."""

    def __init__(self, settings: CacheSettings, clock: Callable[[], float] = time.time) -> None:
        self._shared = settings.shared
        self._entries: TLRUCache[Key, Entry] = TLRUCache(
            maxsize=settings.max_bytes,
            ttu=lambda _key, entry, _now: entry.at + settings.ttl_s,
            timer=clock,
            getsizeof=lambda entry: entry.bytes,
        )

    def key(self, user: str, cache_key: str) -> Key:
        return ("" if self._shared else user), cache_key

    def get(self, key: Key) -> Entry | None:
        return self._entries.get(key)

    def put(self, key: Key, entry: Entry) -> None:
        """Nothing where it alone is over the bytes, or past its time."""
        self._entries.pop(key, None)
        if entry.bytes <= self._entries.maxsize:
            self._entries[key] = entry

    def drop(self, key: Key, entry: Entry) -> None:
        """Its pictures are gone; nothing where another has taken its place."""
        if self._entries.get(key) is entry:
            del self._entries[key]

    def __len__(self) -> int:
        self._entries.expire()
        return len(self._entries)
