"""A refusal that stands for a moment: while the queue is full, a Gateway need not ask again for everybody who comes."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve.errors import QueueFull
from serve.messages import Submission

USERS = 1000  # whose own bound is remembered; beyond it they are asked for, as if nothing were known


class StandingRefusals:
    """What the Dispatcher has said of a full queue, for as long as it said that it holds.

    Only for whom nothing but a place in the queue can help: who repeats a call under its key, or may be answered from
    the cache, is let through to the Dispatcher, and so are the parts of a batch, which are counted together.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[tuple[str, str | None], tuple[float, QueueFull]] = {}

    def heard(self, refusal: QueueFull, submission: Submission) -> None:
        if len(self._said) >= USERS:
            self._said = {whom: said for whom, said in self._said.items() if self._clock() < said[0]}
        if len(self._said) < USERS:
            whom = None if refusal.for_all else submission.user
            self._said[submission.request.model, whom] = (self._clock() + refusal.holds_s, refusal)

    def check(self, submission: Submission) -> None:
        """Raises QueueFull."""
        if not self._said or not _only_a_place_helps(submission):
            return
        for whom in (None, submission.user):
            until, refusal = self._said.get((submission.request.model, whom), (0.0, None))
            if refusal is not None and self._clock() < until:
                raise refusal.again()


def _only_a_place_helps(submission: Submission) -> bool:
    if submission.idempotency_key is not None or submission.batch is not None:
        return False
    return submission.cache == "skip" or not submission.seeded
