"""Which Denoisers Ray Serve gives calls to, as this process's routers hear it.

Not in `placement.py`: Ray Serve pickles the module of a router by value, and whatever is in that one is copied, empty,
each time it unpickles the configuration of a deployment. The routers write here, and the Dispatcher reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from serve.messages import Phase, ReplicaState

REMEMBERED = 1000
LOOK_EVERY_S = 0.05


class Roster:
    """One that was on it and is no more, but lives, is being stopped; or it is dead for Ray, its node being cut off."""

    def __init__(self) -> None:
        self._seen: frozenset[str] = frozenset()
        self._dead: frozenset[str] = frozenset()
        self._now: Mapping[str, frozenset[str]] = {}
        self.gone: Callable[[str, bool], None] = lambda _id, _dead: None

    def update(self, ids: frozenset[str], deployment: str = "Denoiser") -> None:
        """Called in a router's thread, for its own deployment: names are bound anew, sets never changed.

        `gone` is called there with each that is taken off, and whether it is dead.
        """
        before = self._all()
        self._now = {**self._now, deployment: ids - self._dead}
        left = self._seen - before
        self._seen = before | ids | (left if len(left) < REMEMBERED else frozenset())
        for replica_id in before - self._all():
            self.gone(replica_id, replica_id in self._dead)

    def died(self, replica_id: str, deployment: str = "Denoiser") -> None:
        """Ray says so before Ray Serve's next list does, and for good; its process may live on."""
        self._dead = frozenset({replica_id}) | (self._dead if len(self._dead) < REMEMBERED else frozenset())
        listed = self._now.get(deployment, frozenset())
        self.update(listed, deployment)
        if replica_id not in listed:  # withdrawn before, when nobody knew why
            self.gone(replica_id, True)

    def lists(self, replica_id: str) -> bool:
        return replica_id in self._all()

    def withdrawn(self, replica_id: str) -> bool:
        return replica_id in self._seen and not self.lists(replica_id)

    def judge(self, state: ReplicaState) -> ReplicaState:
        """A ready Denoiser is given work while Ray Serve gives it calls, whatever it says itself."""
        if (state.role, state.phase) != ("denoiser", Phase.READY) or self.lists(state.replica_id):
            return state
        return replace(state, phase=Phase.STOPPING if self.withdrawn(state.replica_id) else Phase.WARMING_UP)

    async def listing(self, replica_id: str, patience_s: float) -> bool:
        """Returns when it is on it; False when patience has run out before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not self.lists(replica_id):
                    await asyncio.sleep(LOOK_EVERY_S)
        return self.lists(replica_id)

    def _all(self) -> frozenset[str]:
        return frozenset[str]().union(*self._now.values())


ROSTER = Roster()  # of this process: Ray Serve makes the routers
