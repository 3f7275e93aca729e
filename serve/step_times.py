"""Measured seconds of a replica's work, by size: the currency of deadlines, ETA and autoscaling. No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

SEQUENCE_MULTIPLE = 32
SMOOTHING = 0.2  # weight of a new observation against what was measured before

Table = dict[str, dict[str, float]]


def padded(tokens: int) -> int:
    return -(-tokens // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def sequence_tokens(image_tokens: int, prompt_tokens: int) -> int:
    """Length of the sequence that a denoising step attends over; both parts are padded to multiples of 32."""
    return padded(image_tokens) + padded(prompt_tokens)


class StepTimes:
    """Seconds of one denoising step by (sequence tokens, rows), and of one decoding by pixels.

    What was not measured is interpolated between its neighbours, and beyond the largest extrapolated in proportion;
    an empty table answers zero, which means "unknown".
    """

    def __init__(self) -> None:
        self._steps: dict[int, dict[int, float]] = {}
        self._decodes: dict[int, float] = {}

    def observe_step(self, tokens: int, rows: int, seconds: float) -> None:
        _observe(self._steps.setdefault(rows, {}), tokens, seconds)

    def observe_decode(self, pixels: int, seconds: float) -> None:
        _observe(self._decodes, pixels, seconds)

    def step_seconds(self, tokens: int, rows: int = 1) -> float:
        if not self._steps:
            return 0.0
        return interpolate({known: interpolate(points, tokens) for known, points in self._steps.items()}, rows)

    def covers(self, rows: int) -> bool:
        """So many rows were measured together, or more."""
        return rows <= max(self._steps, default=0)

    def decode_seconds(self, pixels: int) -> float:
        return interpolate(self._decodes, pixels) if self._decodes else 0.0

    def image_seconds(self, *, steps: int, tokens: int, rows: int, pixels: int, encoded: bool = False) -> float:
        """GPU-seconds of one whole picture that has the device to itself.

        One that begins with an input picture has that `encoded`: about half the work of decoding, and counted so.
        """
        passes = 1.5 if encoded else 1.0
        return steps * self.step_seconds(tokens, rows) + passes * self.decode_seconds(pixels)

    def to_table(self) -> Table:
        table: Table = {f"step_{rows}": _strings(points) for rows, points in sorted(self._steps.items())}
        return table | {"decode": _strings(self._decodes)}

    @classmethod
    def from_table(cls, table: Mapping[str, Mapping[str, float]]) -> StepTimes:
        times = cls()
        for name, points in table.items():
            kind, _, rows = name.partition("_")
            measured = {int(size): seconds for size, seconds in points.items()}
            if kind == "decode":
                times._decodes = measured
            else:
                times._steps[int(rows)] = measured
        return times


def _observe(points: dict[int, float], size: int, seconds: float) -> None:
    before = points.get(size, seconds)
    points[size] = before + SMOOTHING * (seconds - before)


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
