"""What the device does next: begin a step, or go on with one that was split so that others may pass. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve.engine.schedule import Entry, Policy, Shape
from serve.step_times import StepTimes

PARTS = 3


@dataclass(slots=True)
class Turn:
    """A step of a batch, in `parts` of about equal time; `done` of them are."""

    batch: list[Entry]
    parts: int = 1
    done: int = 0

    @property
    def ended(self) -> bool:
        return self.done >= self.parts


class Turns:
    """The policy's choice at each boundary. At most one step is paused: what passes it is itself not split.

    A step that is measured to last longer than `split_s` seconds is split in `PARTS`; 0 splits none. A shape that was
    split once stays so, as its parts may be compiled or recorded.
    """

    def __init__(self, policy: Policy, times: StepTimes, split_s: float) -> None:
        self._policy = policy
        self._times = times
        self._split_s = split_s if policy.splits else 0.0
        self._split: set[tuple[Shape, int]] = set()
        self.paused: Turn | None = None

    def next(self, entries: Sequence[Entry], now: float) -> Turn | None:
        """None only when there is nothing to do. The caller runs one part of the turn and counts it in `done`."""
        if self.paused is not None and self._goes_on(self.paused, entries):
            passing = self._passing(self.paused, entries, now)
            return Turn(passing) if passing else self.paused
        batch = self._policy.next(entries, now)
        turn = Turn(batch, self.parts(batch)) if batch else None
        self.paused = turn if turn and turn.parts > 1 else None
        return turn

    def parts(self, batch: Sequence[Entry]) -> int:
        shape = (batch[0].shape, len(batch))
        if self._split_s and self.seconds(batch) > self._split_s:
            self._split.add(shape)
        return PARTS if shape in self._split else 1

    @staticmethod
    def _goes_on(paused: Turn, entries: Sequence[Entry]) -> bool:
        """Not when it has ended, nor when all its members have left."""
        return not paused.ended and any(entry in paused.batch for entry in entries)

    def _passing(self, paused: Turn, entries: Sequence[Entry], now: float) -> list[Entry]:
        inside = {entry.id for entry in paused.batch}
        short = [entry for entry in entries if entry.id not in inside and self.parts([entry]) == 1]
        if not short:
            return []
        rest_s = self.seconds(paused.batch) * (1 - paused.done / paused.parts)
        return self._policy.passing(short, paused.batch, rest_s, now)

    def seconds(self, batch: Sequence[Entry]) -> float:
        """As measured, for a whole step of it."""
        shape = batch[0].shape
        return self._times.step_seconds(shape.tokens, shape.rows * len(batch), shape.controlnet)
