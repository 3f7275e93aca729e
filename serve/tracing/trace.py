"""A job as a trace, in words of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serve.messages import Span
from serve.traceparent import Parent

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Part:
    """Something that happened within a job."""

    name: str
    span: Span
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobTrace:
    """A whole job after its end. `trace_id` is its own where there is no `parent`, `error` why it has no result."""

    trace_id: str
    parent: Parent | None
    span: Span
    parts: Sequence[Part]
    attributes: Mapping[str, Value]
    error: str | None = None


class Traces(Protocol):
    def tell(self, trace: JobTrace) -> None:
        """Takes it and returns at once: a collector that is slow, or gone, holds up nobody."""

    def close(self) -> None:
        """Sends what has not been sent; blocks for some seconds at most."""
