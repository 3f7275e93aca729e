"""RGB [H, W, 3], or [H, W] where one channel is enough."""

from __future__ import annotations

import numpy as np

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
