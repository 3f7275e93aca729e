"""What a soak calls flat."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak import Line, Watch, lines


def watched(mb: list[float], before: float, after: float) -> Watch:
    counts = [{("Gateway", "tasks"): count} for count in (before, after)]
    return Watch(Path(), [100.0 + 5 * i for i in range(len(mb))], {"Gateway": mb}, counts[0], counts[1])


def found(watch: Watch) -> dict[str, Line]:
    return {line.quantity: line for line in lines(watch)}


def test_noise_is_flat() -> None:
    seen = found(watched([250.0 + 10 * (i % 2) for i in range(100)], before=20, after=22))
    assert seen["MB"].flat
    assert seen["tasks"].flat


def test_a_leak_rises() -> None:
    seen = found(watched([250.0 + i for i in range(100)], before=20, after=40))
    assert not seen["MB"].flat
    assert round(seen["MB"].rise) == 99
    assert not seen["tasks"].flat
    assert seen["tasks"].rise == 20


def test_what_shrinks_is_flat() -> None:
    assert all(line.flat for line in lines(watched([250.0 - i for i in range(100)], before=20, after=2)))
