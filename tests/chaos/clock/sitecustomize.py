"""On the PYTHONPATH of a service under test: its time of day is off by what the file CLOCK_OFFSET says, at each moment.

Python imports this at the start of every process. Monotonic clocks are left alone, as by the real thing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

EVERY_S = 0.2  # the file is read

_true, _true_ns, _monotonic = time.time, time.time_ns, time.monotonic
_read_at, _seconds = float("-inf"), 0


def _offset() -> int:
    global _read_at, _seconds
    if _monotonic() - _read_at > EVERY_S:
        _read_at, _seconds = _monotonic(), int(Path(os.environ["CLOCK_OFFSET"]).read_text() or _seconds)
    return _seconds


def _time() -> float:
    return _true() + _offset()


def _time_ns() -> int:
    return _true_ns() + _offset() * 10**9


if "CLOCK_OFFSET" in os.environ:
    time.time, time.time_ns = _time, _time_ns
