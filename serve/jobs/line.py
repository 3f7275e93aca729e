"""The jobs of one priority class: users in turn, least recently served first, and each user's jobs by arrival. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

KEEP_USERS = 10_000  # whose last turn is remembered; older ones count as never served

Place = tuple[int, str]
Turn = tuple[int, int, str]


@dataclass(slots=True)
class Waiting:
    """A job of which `images` are still to be placed, each for `cost` microseconds of a GPU.

    `turn` numbers the turn that it was given, None before that.
    """

    job_id: str
    user: str
    rank: int
    arrival: int
    cost: int
    images: int
    turn: int | None


class Line:
    """A job that was given its turn keeps it until its last image is placed, before all others, and if it comes back.

    While a user waits no other one is given two turns.
    """

    def __init__(self) -> None:
        self._begun: list[Waiting] = []
        self._jobs: dict[str, list[Waiting]] = {}
        self._rotation: list[Turn] = []  # of users: their last turn, and the arrival of their first job
        self._turn_of: dict[str, Turn] = {}
        self._last_turns: dict[str, int] = {}

    def head(self) -> Waiting | None:
        if self._begun:
            return self._begun[0]
        return self._jobs[self._rotation[0][2]][0] if self._rotation else None

    def __iter__(self) -> Iterator[Waiting]:
        """Serving order: whoever was given a turn goes behind all others, so the rounds repeat."""
        yield from self._begun
        users = [self._jobs[user] for _, _, user in self._rotation]
        done = 0
        while users:
            for jobs in users:
                yield jobs[done]
            done += 1
            users = [jobs for jobs in users if len(jobs) > done]

    def add(self, job: Waiting) -> None:
        if job.turn is not None:
            insort(self._begun, job, key=_turn)
        else:
            insort(self._jobs.setdefault(job.user, []), job, key=_place)
            self._rotate(job.user)

    def remove(self, job: Waiting) -> None:
        if job.turn is not None:
            self._begun.remove(job)
        else:
            jobs = self._jobs[job.user]
            del jobs[bisect_left(jobs, _place(job), key=_place)]
            self._rotate(job.user)

    def give_turn(self, job: Waiting, turn: int) -> None:
        self._last_turns.pop(job.user, None)  # back in at the end: the oldest comes first
        self._last_turns[job.user] = turn
        if len(self._last_turns) > KEEP_USERS:
            del self._last_turns[next(iter(self._last_turns))]
        self.remove(job)
        job.turn = turn
        self.add(job)

    def _rotate(self, user: str) -> None:
        """Puts a user, whose jobs have changed, in his place among the others."""
        before = self._turn_of.pop(user, None)
        if before is not None:
            del self._rotation[bisect_left(self._rotation, before)]
        if not self._jobs[user]:
            del self._jobs[user]
            return
        self._turn_of[user] = (self._last_turns.get(user, 0), self._jobs[user][0].arrival, user)
        insort(self._rotation, self._turn_of[user])


def _place(job: Waiting) -> Place:
    return job.arrival, job.job_id


def _turn(job: Waiting) -> int:
    assert job.turn is not None
    return job.turn
