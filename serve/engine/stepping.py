"""A step under way, and how far it has brought its members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from serve.engine.decode import Decoder
from serve.engine.flight import Flight
from serve.engine.schedule import Shape
from serve.engine.turns import Turn


@dataclass(slots=True)
class Step:
    """`work` yields None after each part but the last, and then one velocity for each flight.

    `shape` is that of its members at its beginning. `seconds` are the device's for the parts that it is known to have
    done; `reserved` bytes are given back at the end.
    """

    turn: Turn
    shape: Shape
    flights: list[Flight]
    work: Iterator[list[Tensor] | None]
    reserved: int
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass(frozen=True, slots=True)
class Moved:
    """A flight that has taken `step` steps itself; `preview` [h, w, 3] is on its way to the host."""

    flight: Flight
    step: int
    preview: Tensor | None

    @classmethod
    def along(cls, flight: Flight, velocity: Tensor, decoder: Decoder) -> Moved:
        expected, preview = flight.move(velocity), None
        if not flight.arrived and flight.taken in flight.generation.preview_steps:
            preview = decoder.launch_preview(flight.picture(expected))
        return cls(flight, flight.taken, preview)
