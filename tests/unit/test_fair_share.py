"""A greedy user on a virtual clock: what others wait for depends on how many users there are, not on his jobs."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.jobs.queue import JobQueue

DRAWS_S = 1.0
Arrival = tuple[float, str]


def waits(arrivals: list[Arrival], replicas: int) -> dict[str, list[float]]:
    """Seconds from arrival to the first step, by user, where each job takes a replica for a second."""
    queue, waited = JobQueue(), defaultdict[str, list[float]](list)
    free = [0.0] * replicas  # when each replica is
    coming = sorted(arrivals)
    came: dict[str, Arrival] = {}
    while coming or len(queue):
        now = max(free[0], coming[0][0]) if not len(queue) else free[0]
        while coming and coming[0][0] <= now:
            at, user = coming.pop(0)
            came[f"{len(came)}"] = (at, user)
            queue.add(f"{len(came) - 1}", "interactive", user, image_seconds=DRAWS_S)
        job_id = queue.head()
        assert job_id is not None
        queue.served(job_id)
        queue.remove(job_id)
        at, user = came[job_id]
        waited[user].append(now - at)
        heapq.heapreplace(free, now + DRAWS_S)
    return waited


def modest(users: int, jobs: int, dice: random.Random) -> list[Arrival]:
    """Each of them asks for a picture when the one before must be there, even if all take turns with a greedy one."""
    every = (users + 2) * DRAWS_S
    return [(every * number + dice.random(), f"modest {user}") for user in range(users) for number in range(jobs)]


@pytest.mark.parametrize("times", [1, 10, 100])
def test_a_greedy_user_waits_for_himself(times: int) -> None:
    dice = random.Random(3)
    greedy = [(30 * dice.random(), "greedy") for _ in range(30 * times)]
    waited = waits(greedy + modest(3, 10, dice), replicas=1)
    assert max(wait for user, times_s in waited.items() if user != "greedy" for wait in times_s) <= 4 * DRAWS_S
    assert max(waited["greedy"]) >= (times - 1) * 20 * DRAWS_S


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 200), st.integers(0, 1 << 16))
def test_nobody_waits_for_more_than_one_job_of_each_other_user(
    users: int, replicas: int, greed: int, seed: int
) -> None:
    dice = random.Random(seed)
    greedy = [(10 * dice.random(), "greedy") for _ in range(greed)]
    waited = waits(greedy + modest(users, 5, dice), replicas)
    fair_s = DRAWS_S * (1 + -(-users // replicas))  # what is being drawn, then one of each of the others
    assert max(wait for user, times_s in waited.items() if user != "greedy" for wait in times_s) <= fair_s
