"""What the next Dispatcher of the same Ray must know: that the service was ready, and what has gone to sleep."""

from __future__ import annotations

import json
from collections.abc import Mapping

from serve.jobs.fleet import ROLES, Fleet
from serve.jobs.store import JobStore
from serve.jobs.tasks import Tasks
from serve.step_times import StepTimes

SERVED = "served"


class Served:
    def __init__(self, fleet: Fleet, store: JobStore, tasks: Tasks, tail: str = "") -> None:
        """`tail` tells one model's note from another's."""
        self._key = SERVED + tail
        self._fleet = fleet
        self._store = store
        self._tasks = tasks
        self._session = self._noted = ""
        self._handed_over = False

    def take_up(self, known: Mapping[str, str], session: str) -> bool:
        """Whether it was ready before, in this `session`: with another one all replicas have ended, and are started."""
        self._session, self._noted = session, known.get(self._key, "")
        note = json.loads(self._noted) if self._noted else {}
        if not session or note.get("session") != session:
            return False
        if note["asleep"]:
            self._fleet.sleep(note["asleep"], StepTimes.from_table(note["times"]))
        return True

    def note(self) -> None:
        """Stored where it has changed."""
        note = self._note(self._fleet.sleepers.seconds())
        if self._session and note != self._noted and not self._handed_over:
            self._noted = note
            self._tasks.spawn(self._store.remember(self._key, note))

    async def hand_over(self) -> None:
        """At an orderly end. In a deploy the replicas are replaced as well, and nobody hears their goodbyes.

        The next one takes them for asleep until they speak, and so refuses nobody while it waits for new ones.
        """
        if self._session and all(map(self._fleet.serves, ROLES)):
            self._handed_over = True
            asleep = {role: self._fleet.sleepers.start_s(role) for role in ROLES}
            await self._store.remember(self._key, self._note(asleep))

    def _note(self, asleep: Mapping[str, float | None]) -> str:
        times = self._fleet.times().to_table() if asleep else {}
        return json.dumps({"session": self._session, "asleep": asleep, "times": times})
