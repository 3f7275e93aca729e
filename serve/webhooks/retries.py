"""What follows from the answer to one attempt: delivered, tried again at some time, or given up."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from serve.messages import Delivery

MAX_RETRY_AFTER_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP status, or the reason why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None


def after(
    delivery: Delivery,
    answer: Answer,
    schedule: Sequence[float],
    now: float,
    jitter: Callable[[float, float], float] = random.uniform,
) -> Delivery:
    """`schedule` holds the longest wait in seconds before each retry; the wait itself is random below it.

    Random from nothing up (full jitter), so that what failed together does not come back together.
    """
    tried = replace(delivery, attempts=delivery.attempts + 1, last_status=answer.status, last_error=_wrong(answer))
    if tried.last_error is None:
        return replace(tried, status="delivered", next_attempt_at=None)
    if answer.status == HTTPStatus.GONE or tried.attempts > len(schedule):
        return replace(tried, status="failed", next_attempt_at=None)
    wait = jitter(0.0, schedule[delivery.attempts])
    wait = max(wait, min(answer.retry_after_s or 0.0, MAX_RETRY_AFTER_S))
    return replace(tried, next_attempt_at=now + wait)


def _wrong(answer: Answer) -> str | None:
    if answer.status is None:
        return answer.error
    if 200 <= answer.status < 300:
        return None
    redirect = ", and redirects are not followed" if 300 <= answer.status < 400 else ""
    return f"it answered {answer.status}{redirect}"
