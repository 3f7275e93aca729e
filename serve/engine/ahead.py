"""Launching the device's next work while it is still busy, so that it never waits for Python.

What a decision depends on is known when work is launched; what is told of it (progress, pixels, its duration) has to
wait until the device has done it. A CPU has done its work when the call returns, so nothing is ever pending there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

# Before the device runs dry the next work is chosen: launching takes one millisecond, taking in a request four, and
# where the kernel has no fine timers (in some virtual machines) a sleep ends up to ten too late.
LEAD_S = 0.025
LOOK_EVERY_S = 0.005  # at the device, which may be faster than was expected


class Instant(Protocol):
    """A point between two pieces of work on the device."""

    def reached(self) -> bool: ...

    def wait(self) -> None: ...

    def seconds_since(self, earlier: Instant) -> float:
        """Of the device, whatever else its host did; both were reached."""
        ...


@dataclass(frozen=True, slots=True)
class _Now:
    at: float

    def reached(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Instant) -> float:
        assert isinstance(earlier, _Now)
        return self.at - earlier.at


class _Marked:
    """Where the current stream is now."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def reached(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: Instant) -> float:
        assert isinstance(earlier, _Marked)
        return float(earlier._event.elapsed_time(self._event)) / 1e3


def instant(device: torch.device) -> Instant:
    return _Marked() if device.type == "cuda" else _Now(time.perf_counter())


@dataclass(frozen=True, slots=True)
class _Pending:
    began: Instant
    ended: Instant
    tell: Callable[[float], None]


class Ahead:
    """Work of one device in the order of its launch, until what it did was told.

    Used by the one thread that owns the device. `clock` is in seconds; an `asynchronous` device goes on by itself.
    """

    def __init__(self, clock: Callable[[], float], *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._clock = clock
        self._pending: deque[_Pending] = deque()
        self._free_at = 0.0

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, began: Instant, ended: Instant, expected_s: float, tell: Callable[[float], None]) -> None:
        """Work was launched between two instants; `tell` gets the seconds that the device took for it."""
        self._pending.append(_Pending(began, ended, tell))
        self._free_at = max(self._clock(), self._free_at) + expected_s

    def leisure_s(self) -> float:
        """For so long nothing need be launched; then look again."""
        if not self._pending or self._pending[-1].ended.reached():
            return 0.0
        return max(0.0, min(LOOK_EVERY_S, self._free_at - LEAD_S - self._clock()))

    def tell(self, count: int) -> None:
        """Waits for the first `count` that are pending, and tells what they did."""
        for _ in range(count):
            pending = self._pending.popleft()
            pending.ended.wait()
            pending.tell(pending.ended.seconds_since(pending.began))

    def forget(self) -> None:
        self._pending.clear()
