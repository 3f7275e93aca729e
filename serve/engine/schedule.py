"""Who takes the next denoising step. Pure policy: no torch, no clock of its own, the same under a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve.step_times import StepTimes, sequence_tokens

MIN_GAIN = 1.10  # a batch must be this much faster than its members one after another
LATE_SHARE = 0.10  # of the device's time, for requests that cannot meet their deadline any more


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be equal for requests to share a step: pixels, and the padded length of each row's caption."""

    height: int
    width: int
    captions: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.captions)

    @property
    def tokens(self) -> int:
        return sequence_tokens((self.height // 16) * (self.width // 16), max(self.captions))

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(slots=True)
class Entry:
    """A request in flight as a policy sees it; times in seconds of the caller's clock."""

    id: str
    shape: Shape
    steps_left: int
    admitted: float
    deadline: float
    alone: bool = False


class Policy(Protocol):
    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """The entries, all of one shape, that take the next step together; empty only when there are none."""


class Batcher:
    """Adds company to a chosen entry where the measured table says that it pays and nobody misses a deadline by it."""

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._times = times
        self._max_batch = max_batch

    def step_seconds(self, shape: Shape, members: int = 1) -> float:
        return self._times.step_seconds(shape.tokens, shape.rows * members)

    def remaining(self, entry: Entry, members: int = 1) -> float:
        steps = entry.steps_left * self.step_seconds(entry.shape, members)
        return steps + members * self._times.decode_seconds(entry.shape.pixels)

    def feasible(self, entry: Entry, now: float, members: int = 1) -> bool:
        return now + self.remaining(entry, members) <= entry.deadline

    def fill(self, head: Entry, others: Sequence[Entry], now: float) -> list[Entry]:
        batch = [head]
        if head.alone:
            return batch
        for entry in others:
            if len(batch) == self._max_batch:
                break
            if entry is head or entry.alone or entry.shape != head.shape:
                continue
            if self._pays(head.shape, len(batch) + 1) and self._harmless([*batch, entry], now):
                batch.append(entry)
        return batch

    def _pays(self, shape: Shape, members: int) -> bool:
        if not self._times.covers(shape.rows * members):
            return False
        return members * self.step_seconds(shape) >= MIN_GAIN * self.step_seconds(shape, members)

    def _harmless(self, batch: list[Entry], now: float) -> bool:
        on_time = [entry for entry in batch if self.feasible(entry, now)]
        return all(self.feasible(entry, now, len(batch)) for entry in on_time)


class Fifo:
    """First come, first served; company only of the same shape."""

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._batcher = Batcher(times, max_batch)

    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        arrived = sorted(entries, key=lambda entry: entry.admitted)
        return self._batcher.fill(arrived[0], arrived, now) if arrived else []


class EarliestDeadline:
    """Earliest deadline first among those that can still meet it.

    The late ones follow: the shortest first when nobody else waits, and the oldest in a guaranteed share of the
    device's time, so that nothing starves.
    """

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._batcher = Batcher(times, max_batch)
        self._credit = 0.0

    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        if not entries:
            return []
        on_time = sorted((e for e in entries if self._batcher.feasible(e, now)), key=lambda e: e.deadline)
        on_time_ids = {entry.id for entry in on_time}
        late = sorted((e for e in entries if e.id not in on_time_ids), key=lambda e: e.admitted)
        head = self._head(on_time, late)
        batch = self._batcher.fill(head, [*on_time, *late], now)
        if late and head is not late[0]:
            self._credit += LATE_SHARE * self._batcher.step_seconds(head.shape, len(batch))
        return batch

    def _head(self, on_time: list[Entry], late: list[Entry]) -> Entry:
        if not late:
            self._credit = 0.0
            return on_time[0]
        cost = self._batcher.step_seconds(late[0].shape)
        if self._credit >= cost:
            self._credit -= cost
            return late[0]
        return on_time[0] if on_time else min(late, key=self._batcher.remaining)


POLICIES: dict[str, Callable[[StepTimes, int], Policy]] = {"fifo": Fifo, "edf": EarliestDeadline}
