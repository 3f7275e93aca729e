"""Roles that were scaled to zero: they take work all the same, and it waits until a replica is up."""

from __future__ import annotations

from collections.abc import Mapping

PROCESS_S = 5.0  # from the first waiting job to a process that begins to count: the autoscaler's decision, and Ray's
LEAST_S = 1.0  # of a start that takes longer than the last one


class Sleepers:
    """The roles whose last replica was stopped as planned, until one is ready again.

    How long that takes is measured from the first job that waits; before it was, by the replicas' own warm-up.
    """

    def __init__(self) -> None:
        self._warmup_s: dict[str, float] = {}
        self._woke_s: dict[str, float] = {}
        self._roles: set[str] = set()
        self._called: float | None = None

    def __contains__(self, role: str) -> bool:
        return role in self._roles

    def asleep(self, role: str) -> None:
        self._roles.add(role)

    def awake(self, role: str, warmup_s: float | None, now: float) -> None:
        """One of its replicas is ready, `warmup_s` after its process began."""
        if warmup_s is not None:
            self._warmup_s[role] = warmup_s
        if role in self._roles:
            self._roles.discard(role)
            if self._called is not None:
                self._woke_s[role] = now - self._called
        if not self._roles:
            self._called = None

    def call(self, now: float, *, work: bool) -> None:
        """Somebody waits, or nobody any more."""
        self._called = (self._called if self._called is not None else now) if work and self._roles else None

    def wait_s(self, now: float) -> float | None:
        """Seconds until all are up, for a job that comes now; 0 when none sleeps, None when that was never measured."""
        if not self._roles:
            return 0.0
        times = [self.start_s(role) for role in self._roles]
        if any(seconds is None for seconds in times):
            return None
        passed = now - self._called if self._called is not None else 0.0
        return max(LEAST_S, max(seconds for seconds in times if seconds is not None) - passed)

    def start_s(self, role: str) -> float | None:
        """How long one of it takes from the first job that waits; None when that was never measured."""
        if role in self._woke_s:
            return self._woke_s[role]
        return self._warmup_s[role] + PROCESS_S if role in self._warmup_s else None

    def seconds(self) -> dict[str, float | None]:
        """Of a start, by role that sleeps; None where it is unknown."""
        return {role: self.start_s(role) for role in sorted(self._roles)}

    def restore(self, seconds: Mapping[str, float | None]) -> None:
        self._roles = set(seconds)
        self._woke_s = {role: value for role, value in seconds.items() if value is not None}
