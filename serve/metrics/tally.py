"""Counting in one process what is scraped in another: a recorder here, a tally on the way, the registry there."""

from __future__ import annotations

import threading
from collections import deque

from serve.messages import Series, Tally

REMEMBERED = 64  # tallies of one sender; it sends the next when the one before has arrived


class Recorder:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Series, float] = {}
        self._observed: dict[Series, list[float]] = {}
        self._number = 0
        self._unsent: Tally | None = None

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        with self._lock:
            self._counts[name, labels] = self._counts.get((name, labels), 0.0) + by

    def observe(self, name: str, value: float, *labels: str) -> None:
        with self._lock:
            self._observed.setdefault((name, labels), []).append(value)

    def next(self) -> Tally | None:
        """The one that has not arrived yet, else a new one; None when nothing has happened."""
        self._unsent = self._unsent or self.drain()
        return self._unsent

    def arrived(self, tally: Tally | None) -> None:
        if tally is self._unsent:
            self._unsent = None

    def drain(self) -> Tally | None:
        """None when nothing has happened."""
        with self._lock:
            if not self._counts and not self._observed:
                return None
            self._number += 1
            tally = Tally(self._number, self._counts, self._observed)
            self._counts, self._observed = {}, {}
        return tally


class Deduplicated:
    """Takes each tally of each sender once, also when its answer was lost and it came again, or late."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[int]] = {}

    def new(self, sender: str, tally: Tally) -> bool:
        seen = self._seen.setdefault(sender, deque(maxlen=REMEMBERED))
        if tally.number in seen:
            return False
        seen.append(tally.number)
        return True

    def forget(self, sender: str) -> None:
        self._seen.pop(sender, None)
