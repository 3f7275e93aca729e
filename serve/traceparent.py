"""W3C Trace Context: the trace that a client's request belongs to, as its `traceparent` header names it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ulid import ULID

_FORM = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(-.*)?"
)
_NONE, _FORBIDDEN = "0", "ff"


@dataclass(frozen=True, slots=True)
class Parent:
    """`trace_id` in 32 hexadecimal digits, `span_id` in 16."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parent_of(header: str | None) -> Parent | None:
    """None where there is none, and for one that breaks the rules, which is as good as none."""
    found = _FORM.fullmatch(header or "")
    if found is None or found["version"] == _FORBIDDEN or (found["version"] == "00" and found[5]):
        return None
    if not found["trace"].strip(_NONE) or not found["span"].strip(_NONE):
        return None
    return Parent(found["trace"], found["span"], bool(int(found["flags"], 16) & 1))


def trace_of(job_id: str, traceparent: str | None) -> str:
    """A job's trace: the client's, else its own, whose id is the job's id as a number: 80 bits of it are random."""
    parent = parent_of(traceparent)
    return parent.trace_id if parent else ULID.from_str(job_id).hex
