"""By when a job without `deadline_ms` should be done: the replicas' order among the images that they hold. Pure."""

from __future__ import annotations

from serve.messages import Priority

FACTOR: dict[Priority, float] = {"interactive": 3, "standard": 10, "batch": 60}  # × time alone on a GPU
UNKNOWN_S = 10.0  # before anything was measured
AT_ONCE_S = 0.05


class SoftDeadlines:
    """Whoever is placed at once ranks by its size. Jobs that had to wait stay in the queue's order, class by class.

    Otherwise a backlog would make small jobs late before they are placed, the replicas would take them last, and
    neither positions nor estimates would come true.
    """

    def __init__(self) -> None:
        self._last: dict[Priority, float] = {}

    def accept(self, priority: Priority, alone_s: float, now: float) -> float:
        return now + FACTOR[priority] * (alone_s or UNKNOWN_S)

    def place(
        self,
        priority: Priority,
        accepted: float,
        *,
        alone_s: float,
        image_s: float,
        now: float,
        replicas: int,
        owed: bool = False,
    ) -> float:
        """Of an image that is placed now, `accepted` being the deadline given at acceptance.

        One that is placed before a higher class because its own is `owed` its share is given with `priority` that
        class, and its deadline: else it would lose on the replica what it was given in the queue, and hold a slot for
        as long.

        Successive deadlines of a class lie half an image apart: more than the delays between here and a replica.
        """
        from_now = self.accept(priority, alone_s, now)
        deadline = accepted
        if owed or from_now - accepted > AT_ONCE_S:
            deadline = max(from_now, self._last.get(priority, 0.0) + image_s / 2 / max(1, replicas))
        self._last[priority] = deadline
        return deadline
