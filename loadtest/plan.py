"""What every deployment is asked for: drawn from one seed, so it is the same for all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from loadtest.subjects import Order

SIZES = {64: 0.3, 128: 0.5, 192: 0.15, 256: 0.05}  # side in pixels: share of the requests
THINGS = ("red fox", "penguin", "yellow banana", "cat", "green tree", "owl", "blue whale", "house")


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int = 1
    load: float = 0.7  # arrivals in the trace, as a share of what diffusers could draw without a server
    requests: int = 40  # of the trace
    alone: int = 3  # pictures of each size, one after the other
    cached: int = 5  # times that a finished picture is asked for again
    beside: int = 4  # clients that draw meanwhile
    patience_s: float = 30.0  # a user gives up
    stable_s: float = 3.0  # 95 % of a crowd have their picture by then, and all of it: it is stable
    crowd: int = 128  # the largest that is tried

    def quick(self) -> Plan:
        """Seconds instead of a minute for each; says that it works, and little else."""
        return replace(self, requests=10, alone=2, cached=3, beside=2, crowd=4)

    def trace(self, mean_s: float, round_: int) -> list[tuple[float, Order]]:
        """Poisson arrivals (seconds from the start) at `load` of what takes `mean_s` each."""
        chance = random.Random(f"{self.seed} {round_}")
        at, found = 0.0, []
        for number in range(self.requests):
            at += chance.expovariate(self.load / mean_s)
            (size,) = chance.choices(list(SIZES), list(SIZES.values()))
            found.append((at, order(f"trace {round_}", number, size)))
        return found


def order(kind: str, number: int, size_px: int) -> Order:
    """A picture that nobody has asked for before, if nobody used `kind` and `number` before."""
    return Order(f"a {THINGS[number % len(THINGS)]}, {kind} {number}", size_px, number)
