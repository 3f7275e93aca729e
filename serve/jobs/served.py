"""What the next Dispatcher of the same Ray must know: that the service was ready, and what has gone to sleep."""

from __future__ import annotations

import json

from serve.jobs.fleet import Fleet
from serve.step_times import StepTimes

SERVED = "served"


def note_of(fleet: Fleet, session: str) -> str:
    sleepers = json.loads(fleet.sleepers.to_json())
    return json.dumps({"session": session, "asleep": sleepers, "times": fleet.times().to_table() if sleepers else {}})


def take_up(fleet: Fleet, note: str | None, session: str) -> bool:
    """Whether it was ready before, in this `session`: with another one all replicas have ended, and are started."""
    known = json.loads(note) if note else {}
    if not session or known.get("session") != session:
        return False
    if known["asleep"]:
        fleet.sleep(known["asleep"], StepTimes.from_table(known["times"]))
    return True
