"""Measured seconds of a replica's work, by size: the currency of deadlines, ETA and autoscaling. No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import TypeVar

SEQUENCE_MULTIPLE = 32
SMOOTHING = 0.2  # weight of a new observation against what was measured before
CONTROLNETS = "controlnets"  # of the table: by name, how many times as long a step takes

Table = dict[str, dict[str, float]]
Key = TypeVar("Key", int, str)


def padded(tokens: int) -> int:
    return -(-tokens // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def sequence_tokens(image_tokens: int, prompt_tokens: int) -> int:
    """Length of the sequence that a denoising step attends over; both parts are padded to multiples of 32."""
    return padded(image_tokens) + padded(prompt_tokens)


class StepTimes:
    """Seconds of one denoising step by (sequence tokens, rows), and of one decoding by pixels.

    What was not measured is interpolated between its neighbours, and beyond the largest extrapolated in proportion;
    an empty table answers zero, which means "unknown".

    Steps are those without a ControlNet. One with it takes a factor more: at first as its blocks say, then as measured
    at sizes that were measured without one, too. One that nobody has told of is taken for nothing.
    """

    def __init__(self) -> None:
        self._steps: dict[int, dict[int, float]] = {}
        self._decodes: dict[int, float] = {}
        self._factors: dict[str, float] = {}

    def expect(self, controlnet: str, factor: float) -> None:
        """Of a step with it beside one without, before any was measured."""
        self._factors[controlnet] = factor

    def factor(self, controlnet: str | None) -> float:
        return self._factors.get(controlnet, 1.0) if controlnet is not None else 1.0

    def observe_step(self, tokens: int, rows: int, seconds: float, controlnet: str | None = None) -> None:
        plain = self._steps.get(rows, {}).get(tokens, 0.0)
        if controlnet in self._factors and plain > 0:
            _observe(self._factors, controlnet, max(1.0, seconds / plain))
        else:
            _observe(self._steps.setdefault(rows, {}), tokens, seconds / self.factor(controlnet))

    def observe_decode(self, pixels: int, seconds: float) -> None:
        _observe(self._decodes, pixels, seconds)

    def step_seconds(self, tokens: int, rows: int = 1, controlnet: str | None = None) -> float:
        if not self._steps:
            return 0.0
        plain = interpolate({known: interpolate(points, tokens) for known, points in self._steps.items()}, rows)
        return self.factor(controlnet) * plain

    def covers(self, rows: int) -> bool:
        """So many rows were measured together, or more."""
        return rows <= max(self._steps, default=0)

    def decode_seconds(self, pixels: int) -> float:
        return interpolate(self._decodes, pixels) if self._decodes else 0.0

    def image_seconds(
        self, *, steps: int, tokens: int, rows: int, pixels: int, encoded: int = 0, controlnet: str | None = None
    ) -> float:
        """GPU-seconds of one whole picture that has the device to itself.

        So many input pictures are `encoded` for it: each about half the work of decoding, and counted so.
        """
        passes = 1 + encoded / 2
        return steps * self.step_seconds(tokens, rows, controlnet) + passes * self.decode_seconds(pixels)

    def to_table(self) -> Table:
        table: Table = {f"step_{rows}": _strings(points) for rows, points in sorted(self._steps.items())}
        table["decode"] = _strings(self._decodes)
        return table | ({CONTROLNETS: dict(self._factors)} if self._factors else {})

    @classmethod
    def from_table(cls, table: Mapping[str, Mapping[str, float]]) -> StepTimes:
        times = cls()
        for name, points in table.items():
            if name == CONTROLNETS:
                times._factors = dict(points)
                continue
            kind, _, rows = name.partition("_")
            measured = {int(size): seconds for size, seconds in points.items()}
            if kind == "decode":
                times._decodes = measured
            else:
                times._steps[int(rows)] = measured
        return times


def _observe(points: dict[Key, float], key: Key, seen: float) -> None:
    before = points.get(key, seen)
    points[key] = before + SMOOTHING * (seen - before)


def _strings(points: dict[int, float]) -> dict[str, float]:
    return {str(size): seconds for size, seconds in sorted(points.items())}


def interpolate(points: Mapping[int, float], size: int) -> float:
    """Between the neighbours of `size`; below the least its value, above the largest in proportion."""
    sizes = sorted(points)
    at = bisect_left(sizes, size)
    if at == len(sizes):
        return points[sizes[-1]] * size / sizes[-1]
    if at == 0 or sizes[at] == size:
        return points[sizes[at]]
    low, high = sizes[at - 1], sizes[at]
    return points[low] + (points[high] - points[low]) * (size - low) / (high - low)
