"""Who takes the next denoising step. Pure policy: no torch, no clock of its own, the same under a virtual clock."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from serve.step_times import StepTimes, sequence_tokens

MIN_GAIN = 1.10  # a batch must be this much faster than its members one after another
LATE_SHARE = 0.10  # of the device's time, for requests that cannot meet their deadline any more
FORCED_STEPS = 8  # of a late request, saved up: then its share is taken also where somebody becomes late by it


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be equal for requests to share a step: pixels, the padded length of each row's caption, the adapter.

    `adapter` is its name and its scale; of the `controlnet` rows may have scales of their own.
    """

    height: int
    width: int
    captions: tuple[int, ...]
    adapter: tuple[str, float] | None = None
    controlnet: str | None = None

    @property
    def rows(self) -> int:
        return len(self.captions)

    def unguided(self) -> Shape:
        """Of a step that takes the prompt alone."""
        return replace(self, captions=self.captions[:1])

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
    """One per engine; asked at every boundary between two steps, and between the parts of steps if it `splits` them."""

    splits: ClassVar[bool] = False

    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """The entries, all of one shape, that take the next step together; empty only when there are none."""
        ...

    def passing(
        self,
        entries: Sequence[Entry],  # noqa: ARG002
        paused: Sequence[Entry],  # noqa: ARG002
        rest_s: float,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> list[Entry]:
        """Which of `entries` take a step before the paused one, of which `rest_s` is left, goes on: usually none."""
        return []


class Batcher:
    """Adds company to a chosen entry where the measured table says that it pays and nobody misses a deadline by it."""

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._times = times
        self._max_batch = max_batch

    def step_seconds(self, shape: Shape, members: int = 1) -> float:
        return self._times.step_seconds(shape.tokens, shape.rows * members, shape.controlnet)

    def remaining(self, entry: Entry, members: int = 1) -> float:
        steps = entry.steps_left * self.step_seconds(entry.shape, members)
        return steps + members * self._times.decode_seconds(entry.shape.pixels)

    def feasible(self, entry: Entry, now: float, members: int = 1) -> bool:
        return now + self.remaining(entry, members) <= entry.deadline

    def fill(self, head: Entry, others: Sequence[Entry], now: float) -> list[Entry]:
        """The largest batch that pays: four may, where two do not yet."""
        company = self.company(head, others)
        while company:
            batch = [head, *company]
            if self._pays(head.shape, len(batch)) and self._harmless(batch, now):
                return batch
            company.pop()
        return [head]

    def company(self, head: Entry, others: Sequence[Entry]) -> list[Entry]:
        """Who could share a step with `head`, whether it pays or not."""
        if head.alone:
            return []
        alike = [e for e in others if e is not head and not e.alone and e.shape == head.shape]
        return alike[: self._max_batch - 1]

    def _pays(self, shape: Shape, members: int) -> bool:
        if not self._times.covers(shape.rows * members):
            return False
        return members * self.step_seconds(shape) >= MIN_GAIN * self.step_seconds(shape, members)

    def _harmless(self, batch: list[Entry], now: float) -> bool:
        on_time = [entry for entry in batch if self.feasible(entry, now)]
        return all(self.feasible(entry, now, len(batch)) for entry in on_time)


class Fifo(Policy):
    """First come, first served; company only of the same shape."""

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._batcher = Batcher(times, max_batch)

    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        arrived = _by_arrival(entries)
        return self._batcher.fill(arrived[0], arrived, now) if arrived else []


class Static(Policy):
    """What a batching server without a step loop does: the oldest, with all that are alike and there, to their end.

    Whoever comes meanwhile waits for the whole batch, also where it would have fitted in.
    """

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._batcher = Batcher(times, max_batch)
        self._running: set[str] = set()

    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:  # noqa: ARG002
        arrived = _by_arrival(entries)
        batch = [entry for entry in arrived if entry.id in self._running]
        if not batch and arrived:
            batch = [arrived[0], *self._batcher.company(arrived[0], arrived)]
        self._running = {entry.id for entry in batch}
        return batch


class RoundRobin(Policy):
    """Everybody takes a step in turn, together with all that are alike: a saturated device is shared equally."""

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._batcher = Batcher(times, max_batch)
        self._turns = 0
        self._last: dict[str, int] = {}

    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:  # noqa: ARG002
        if not entries:
            return []
        self._last = {entry.id: self._last.get(entry.id, self._turns) for entry in entries}
        ring = sorted(_by_arrival(entries), key=lambda entry: self._last[entry.id])
        batch = [ring[0], *self._batcher.company(ring[0], ring)]
        self._turns += 1
        self._last |= {entry.id: self._turns for entry in batch}
        return batch


class EarliestDeadline(Policy):
    """Earliest deadline first among as many as can meet theirs together; where not all can, the longest step back.

    The others follow, the shortest first, when nobody else waits. The oldest of them has a guaranteed share of the
    device's time, so that nothing starves: taken where it makes nobody late, and by force when too much is saved up.
    """

    splits = True

    def __init__(self, times: StepTimes, max_batch: int) -> None:
        self._batcher = Batcher(times, max_batch)
        self._credit = 0.0

    def next(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        if not entries:
            return []
        on_time = self._on_time(entries, now)
        kept = {entry.id for entry in on_time}
        late = _by_arrival([entry for entry in entries if entry.id not in kept])
        head = self._head(on_time, late, now)
        batch = self._batcher.fill(head, [*on_time, *late], now)
        if late and head is not late[0]:
            self._earn(batch)
        return batch

    def passing(self, entries: Sequence[Entry], paused: Sequence[Entry], rest_s: float, now: float) -> list[Entry]:
        """Whoever is due before the paused ones; late ones let only those pass that cannot wait, and not for ever."""
        begun = now + rest_s - self._batcher.step_seconds(paused[0].shape, len(paused))
        due = min((_due(entry) for entry in paused if self._batcher.feasible(entry, begun)), default=None)
        urgent = sorted((entry for entry in entries if self._batcher.feasible(entry, now)), key=_due)
        if due is not None:
            urgent = [entry for entry in urgent if _due(entry) < due]
            return self._batcher.fill(urgent[0], urgent, now) if urgent else []
        urgent = [entry for entry in urgent if not self._batcher.feasible(entry, now + rest_s)]
        if not urgent or self._spend(rest_s):
            return []
        batch = self._batcher.fill(urgent[0], urgent, now)
        self._earn(batch)
        return batch

    def _on_time(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """As many as can meet their deadlines one after another, by deadline (Moore and Hodgson)."""
        kept: list[tuple[float, str]] = []
        end = now
        by_deadline = sorted((entry for entry in entries if self._batcher.feasible(entry, now)), key=_due)
        for entry in by_deadline:
            seconds = self._batcher.remaining(entry)
            heapq.heappush(kept, (-seconds, entry.id))
            end += seconds
            if end > entry.deadline:
                end += heapq.heappop(kept)[0]
        ids = {id for _, id in kept}
        return [entry for entry in by_deadline if entry.id in ids]

    def _head(self, on_time: list[Entry], late: list[Entry], now: float) -> Entry:
        if not late:
            self._credit = 0.0
            return on_time[0]
        cost = self._batcher.step_seconds(late[0].shape)
        forced = self._credit >= FORCED_STEPS * cost
        if (forced or self._slack(on_time, now) >= cost) and self._spend(cost):
            return late[0]
        return on_time[0] if on_time else min(late, key=self._batcher.remaining)

    def _slack(self, on_time: list[Entry], now: float) -> float:
        """For how long all of them can wait together."""
        slack, end = math.inf, now
        for entry in on_time:
            end += self._batcher.remaining(entry)
            slack = min(slack, entry.deadline - end)
        return slack

    def _earn(self, batch: list[Entry]) -> None:
        self._credit += LATE_SHARE * self._batcher.step_seconds(batch[0].shape, len(batch))

    def _spend(self, seconds: float) -> bool:
        """Whether the late ones have saved so much of their share."""
        if self._credit < seconds:
            return False
        self._credit -= seconds
        return True


def _by_arrival(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.admitted)


def _due(entry: Entry) -> float:
    return entry.deadline


POLICIES: dict[str, Callable[[StepTimes, int], Policy]] = {
    "fifo": Fifo,
    "static": Static,
    "round_robin": RoundRobin,
    "edf": EarliestDeadline,
}
