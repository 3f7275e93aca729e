from __future__ import annotations

import pytest
from ulid import ULID

from serve.traceparent import Parent, parent_of, trace_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
JOB = "01M803SESFJX10AYZ80QS3R5S5"


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False), ("03", True)])
def test_a_parent_is_read(flags: str, sampled: bool) -> None:
    assert parent_of(f"00-{TRACE}-{SPAN}-{flags}") == Parent(TRACE, SPAN, sampled)


def test_it_is_written_as_it_was_read() -> None:
    assert str(parent_of(f"00-{TRACE}-{SPAN}-01")) == f"00-{TRACE}-{SPAN}-01"


def test_a_later_version_may_say_more() -> None:
    assert parent_of(f"cc-{TRACE}-{SPAN}-01-what-comes") == Parent(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_what_breaks_the_rules_is_none(header: str | None) -> None:
    assert parent_of(header) is None


def test_a_job_without_a_client_s_trace_has_its_own() -> None:
    assert int(trace_of(JOB, None), 16) == int(ULID.from_str(JOB))
    assert trace_of(JOB, f"00-{TRACE}-{SPAN}-01") == TRACE
