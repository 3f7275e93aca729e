"""The wall clock of a run: log lines, and loops that end when their time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers

LOG_EVERY_S = 5.0


def disable_progress_bars() -> None:
    """The libraries' own, for loading and saving."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


class Clock:
    """Counts from the start of the process; everything that is logged carries its time."""

    def __init__(self, started: float, log_file: Path) -> None:
        """`started` is a reading of `time.monotonic()`."""
        self._started = started
        self._log_file = log_file
        log_file.write_text("", encoding="utf-8")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def log(self, text: str) -> None:
        line = f"[{self.elapsed:7.1f} s] {text}"
        print(line, flush=True)
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(frozen=True, slots=True)
class Step:
    """`done` is the share of the loop that is over, 0..1; `report` says that a log line is due."""

    number: int
    done: float
    report: bool


class TimedLoop:
    """Training steps until a moment of the clock, or a number of them. Time counts once compiling is over."""

    def __init__(
        self, clock: Clock, end: float, *, share: float = 1.0, max_steps: int | None = None, compiling_steps: int = 4
    ) -> None:
        """The loop takes `share` of the seconds between the end of compiling and `end`."""
        self._clock = clock
        self._end = end
        self._share = share
        self._max_steps = max_steps
        self._compiling_steps = compiling_steps
        self._began: float | None = None
        self._reported = clock.elapsed
        self.steps = 0

    def __iter__(self) -> Iterator[Step]:
        while self._clock.elapsed < self._end and self.steps != self._max_steps:
            if self.steps == self._compiling_steps:
                self._start_counting()
            yield Step(self.steps, self._done, self._report_is_due())
            self.steps += 1

    @property
    def rate(self) -> float:
        """Steps a second since compiling ended."""
        if self._began is None:
            return 0.0
        return (self.steps - self._compiling_steps) / max(self._clock.elapsed - self._began, 1e-9)

    @property
    def _done(self) -> float:
        if self._began is None:
            return 0.0
        by_steps = self.steps / self._max_steps if self._max_steps else 0.0
        return min(1.0, max(by_steps, (self._clock.elapsed - self._began) / (self._end - self._began)))

    def _start_counting(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._began = self._clock.elapsed
        self._end = self._began + max(0.0, self._end - self._began) * self._share + 1e-3

    def _report_is_due(self) -> bool:
        due = self._clock.elapsed - self._reported >= LOG_EVERY_S
        if due:
            self._reported = self._clock.elapsed
        return due
