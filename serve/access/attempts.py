"""How often somebody has been wrong of late: in this process alone, and for a bounded number of callers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from cachetools import TTLCache
from starlette.requests import HTTPConnection

from serve.errors import TooManySignIns

WINDOW_S = 60.0
REMEMBERED = 10_000  # callers; then the oldest are forgotten


class Attempts:
    """Counts failures of one kind by who failed; a window begins with the first of them."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._windows: TTLCache[tuple[str, ...], list[float]] = TTLCache(REMEMBERED, WINDOW_S, clock)

    def check(self, *who: str) -> None:
        """Raises TooManySignIns for somebody who has used up the window."""
        window = self._windows.get(who)
        if window is not None and len(window) >= self._most:
            left = max(1, math.ceil(window[0] + WINDOW_S - self._clock()))
            raise TooManySignIns(
                f"more than {self._most} failed sign-ins within {WINDOW_S:.0f} s",
                hint="look up the right key or password, and wait",
                retry_after=left,
            )

    def failed(self, *who: str) -> None:
        """One more. Raises as `check` does, and does not count it, where the window was used up."""
        self.check(*who)
        window = self._windows.get(who)
        if window is None:
            window = self._windows[who] = []
        window.append(self._clock())


def address_of(connection: HTTPConnection) -> str:
    """An IPv4 address, or the /64 of an IPv6 one, which is one customer's."""
    host = connection.client.host if connection.client else ""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
