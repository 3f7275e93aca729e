"""Requests of several jobs: Triton counts each once, when the last of its jobs has ended."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

from serve.messages import Batch
from serve.metrics.statistics import Reason

MOST_OPEN = 10_000  # a Gateway that died may never send the rest of a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`reason` is why it failed; None where it did not. Of several jobs the first failure counts, and the longest."""

    reason: Reason | None
    took_s: float
    waited_s: float = 0.0

    def and_then(self, other: Outcome) -> Outcome:
        took_s, waited_s = max(self.took_s, other.took_s), max(self.waited_s, other.waited_s)
        return Outcome(reason=self.reason or other.reason, took_s=took_s, waited_s=waited_s)


class Batches:
    def __init__(self) -> None:
        self._open: LRUCache[str, tuple[int, Outcome]] = LRUCache(MOST_OPEN)

    def add(self, batch: Batch | None, outcome: Outcome) -> Outcome | None:
        """What became of the whole request; None while jobs of it are left."""
        if batch is None:
            return outcome
        left, so_far = self._open.pop(batch.id, (batch.jobs, None))
        outcome = so_far.and_then(outcome) if so_far else outcome
        if left == 1:
            return outcome
        self._open[batch.id] = left - 1, outcome
        return None
