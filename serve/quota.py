"""What a user may draw in a minute and in a day, and how much is left: arithmetic over what was counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Span = Literal["minute", "day"]
SPANS: dict[Span, int] = {"minute": 60, "day": 24 * 3600}


def began(span: Span, at: float) -> int:
    """Unix time at which the span around `at` began; days begin at midnight UTC."""
    return int(at // SPANS[span]) * SPANS[span]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Pixel·steps are width × height × steps, twice that with guidance, summed over the images."""

    images: int = 0
    pixel_steps: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(images=self.images + other.images, pixel_steps=self.pixel_steps + other.pixel_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """None: as much as you like."""

    images_per_minute: int | None = None
    images_per_day: int | None = None
    pixel_steps_per_minute: int | None = None
    pixel_steps_per_day: int | None = None

    @property
    def limited(self) -> bool:
        return self != Quota()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One limit of a quota at one moment; `name` is such as `images-per-day`."""

    name: str
    limit: int
    used: int
    span_s: int
    reset_s: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def of_images(self) -> bool:
        return self.name.startswith("images")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a user has used at the Unix time `at`, in the minute and in the day around it."""

    at: float
    minute: Amount = Amount()
    day: Amount = Amount()

    def __add__(self, more: Amount) -> Usage:
        return Usage(at=self.at, minute=self.minute + more, day=self.day + more)

    def windows(self, quota: Quota) -> list[Window]:
        """One for each limit that there is."""
        return list(self._windows(quota))

    def _windows(self, quota: Quota) -> Iterator[Window]:
        amounts: dict[Span, Amount] = {"minute": self.minute, "day": self.day}
        for unit in ("images", "pixel_steps"):
            for span, amount in amounts.items():
                limit = getattr(quota, f"{unit}_per_{span}")
                if limit is not None:
                    yield Window(
                        name=f"{unit}-per-{span}".replace("_", "-"),
                        limit=limit,
                        used=getattr(amount, unit),
                        span_s=SPANS[span],
                        reset_s=began(span, self.at) + SPANS[span] - int(self.at),
                    )
