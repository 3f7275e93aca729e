"""The order of jobs that still wait for something: priority class, then arrival. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator

from serve.messages import PRIORITIES, Priority


class JobQueue:
    def __init__(self) -> None:
        self._order: list[tuple[int, int, str]] = []
        self._keys: dict[str, tuple[int, int, str]] = {}
        self._users: dict[str, str] = {}
        self._per_user: Counter[str] = Counter()
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._keys

    def __iter__(self) -> Iterator[str]:
        return (job_id for _, _, job_id in self._order)

    def add(self, job_id: str, priority: Priority, user: str, arrival: int | None = None) -> int:
        """The number of its arrival; with the one that it was given before, a job gets its old place back."""
        if job_id in self._keys:
            return self._keys[job_id][1]
        if arrival is None:
            self._arrivals += 1
            arrival = self._arrivals
        key = (PRIORITIES.index(priority), arrival, job_id)
        self._keys[job_id], self._users[job_id] = key, user
        self._per_user[user] += 1
        insort(self._order, key)
        return arrival

    def remove(self, job_id: str) -> None:
        """Nothing when it is not there."""
        key = self._keys.pop(job_id, None)
        if key is not None:
            del self._order[bisect_left(self._order, key)]
            self._per_user[self._users.pop(job_id)] -= 1

    def up_to(self, priority: Priority) -> list[str]:
        """Jobs that a new one of this class would wait for."""
        lowest = PRIORITIES.index(priority)
        return [job_id for rank, _, job_id in self._order if rank <= lowest]

    def waiting_of(self, user: str) -> int:
        return self._per_user[user]
