from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.messages import Delivery
from serve.webhooks.retries import MAX_RETRY_AFTER_S, Answer, after

SCHEDULE = (10.0, 40.0, 160.0)
NEW = Delivery(job_id="j", url="https://example.org/", status="pending", next_attempt_at=0.0)


def longest(_: float, most: float) -> float:
    return most


def test_any_2xx_is_the_end() -> None:
    for status in (200, 202, 204, 299):
        ended = after(NEW, Answer(status=status), SCHEDULE, 5.0)
        assert (ended.status, ended.attempts, ended.last_status, ended.last_error) == ("delivered", 1, status, None)
        assert ended.next_attempt_at is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=500), "it answered 500"),
        (Answer(status=404), "it answered 404"),
        (Answer(status=302), "it answered 302, and redirects are not followed"),
        (Answer(error="no connection"), "no connection"),
    ],
)
def test_all_else_is_tried_again_and_later_each_time_until_it_is_given_up(answer: Answer, reason: str) -> None:
    delivery, waits = NEW, []
    while delivery.status == "pending":
        delivery = after(delivery, answer, SCHEDULE, 100.0, longest)
        waits.append(None if delivery.next_attempt_at is None else delivery.next_attempt_at - 100.0)
    assert waits == [10.0, 40.0, 160.0, None]
    assert (delivery.status, delivery.attempts, delivery.last_error) == ("failed", 4, reason)


def test_who_is_gone_is_not_called_again() -> None:
    ended = after(NEW, Answer(status=410), SCHEDULE, 0.0)
    assert (ended.status, ended.attempts, ended.next_attempt_at) == ("failed", 1, None)


def test_retry_after_is_the_least_wait_up_to_a_day() -> None:
    for said, waited in ((2.0, 10.0), (100.0, 100.0), (1e9, MAX_RETRY_AFTER_S)):
        assert after(NEW, Answer(status=503, retry_after_s=said), SCHEDULE, 0.0, longest).next_attempt_at == waited


@settings(deadline=None)
@given(st.integers(0, 2), st.floats(0, 1e9))
def test_waits_are_random_from_nothing_to_the_schedule(attempts: int, now: float) -> None:
    tried = Delivery(job_id="j", url="u", status="pending", attempts=attempts)
    at = after(tried, Answer(status=500), SCHEDULE, now).next_attempt_at
    assert at is not None
    assert now <= at <= now + SCHEDULE[attempts]


def test_waits_differ() -> None:
    assert len({after(NEW, Answer(status=500), SCHEDULE, 0.0).next_attempt_at for _ in range(20)}) > 1
