"""The order of jobs that wait for a GPU: priority classes with guaranteed shares, users in turn, then arrival. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from serve.jobs.line import Line, Waiting
from serve.messages import PRIORITIES, Priority

ONE_IN = 10  # GPU-seconds belong to each class below the first, while it waits
UNKNOWN_S = 1.0  # an image whose work nobody has measured yet
NEWCOMER = ""

Heads = Sequence[Waiting | None]


class Shares:
    """Which class is next: the highest, but a lower one as soon as it is owed the cost of its next image.

    A lower class earns, while it waits, a tenth of all GPU-seconds that are placed, and pays for its own. What it gets
    because nobody above it waits is not held against it, and what it has earned is lost when nothing of it waits. So
    it gets a tenth of any span in which it waits, less at most 1.25 of the costliest image. `standard` and `batch` are
    guaranteed a tenth each, which leaves at least eight tenths to `interactive`.
    """

    def __init__(self, credit: Sequence[int] = (0,) * len(PRIORITIES)) -> None:
        self._credit = list(credit)  # in microseconds / ONE_IN, whole numbers, so that a forecast is exact

    def copy(self) -> Shares:
        return Shares(self._credit)

    def next(self, heads: Heads) -> Waiting | None:
        waiting = [head for head in heads if head is not None]
        owed = (head for head in reversed(waiting) if head.rank and self._missing(head) <= 0)
        return next(owed, waiting[0] if waiting else None)

    def run(self, job: Waiting, images: int, heads: Heads) -> int:
        """How many of the images of `job`, which is next, are placed before another class comes between."""
        others = [head for head in heads if head is not None and head is not job]
        if any(head.rank < job.rank for head in others):
            return 1
        return max(1, min([images, *(-(-self._missing(head) // job.cost) for head in others)]))

    def charge(self, job: Waiting, images: int, heads: Heads) -> None:
        """`images` of `job` are placed while `heads` wait."""
        for head in heads:
            if head is not None:
                self._credit[head.rank] += images * job.cost
        self._credit[job.rank] = max(0, self._credit[job.rank] - ONE_IN * images * job.cost)

    def forget(self, rank: int) -> None:
        self._credit[rank] = 0

    def _missing(self, head: Waiting) -> int:
        return ONE_IN * head.cost - self._credit[head.rank]


class JobQueue:
    """A job is here from its arrival until it is removed, which is when it begins or ends.

    `head` is the job whose next image is to be placed; `served` says that it was. A job whose images are all placed
    only keeps its position. Iteration gives the order in which the jobs here will begin if nothing changes.

    Removing a job changes the order of others only in this: the user's later jobs move up into the turns that its
    earlier ones had, and lower classes, whose shares are of GPU-seconds, come in between elsewhere. Within a class the
    jobs of one user, and the jobs of all other users, stay in order among themselves, and no job has more ahead of it.
    """

    def __init__(self) -> None:
        self._lines = [Line() for _ in PRIORITIES]
        self._shares = Shares()
        self._jobs: dict[str, Waiting] = {}
        self._per_user: Counter[str] = Counter()
        self._arrivals = 0
        self._turns = 0
        self._order: list[str] | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def __iter__(self) -> Iterator[str]:
        if self._order is None:
            placed = sorted((job for job in self._jobs.values() if not job.images), key=lambda job: job.turn or 0)
            self._order = [job.job_id for job in placed] + self._forecast()
        return iter(self._order)

    def add(
        self,
        job_id: str,
        priority: Priority,
        user: str,
        arrival: int | None = None,
        *,
        images: int = 1,
        image_seconds: float = 0.0,
        turn: int | None = None,
    ) -> int:
        """The number of its arrival. `images` are to be placed, each for `image_seconds` of a GPU, 0 if unknown.

        With the `arrival` and `turn` that it had, a job gets its old place back: behind those of its class that were
        given their turn earlier, before all others. Of a job that is here already, images and seconds are set anew.
        """
        cost = max(1, round(1e6 * (image_seconds or UNKNOWN_S)))
        self._order = None
        if job_id in self._jobs:
            return self._renew(self._jobs[job_id], images, cost)
        if arrival is None:
            arrival = self._arrivals + 1
        self._arrivals = max(self._arrivals, arrival)
        self._turns = max(self._turns, turn or 0)
        job = Waiting(job_id, user, PRIORITIES.index(priority), arrival, cost, images, turn)
        self._jobs[job_id] = job
        self._per_user[user] += 1
        self._lines[job.rank].add(job)
        return arrival

    def arrive(self) -> int:
        """The number of an arrival, for a job that may have to wait here later."""
        self._arrivals += 1
        return self._arrivals

    def hand_over(self, job_id: str, heir_id: str, priority: Priority, user: str, arrival: int) -> None:
        """Another job gets the images of one that is here, with its turn, but waits in a place of its own."""
        job = self._jobs[job_id]
        heir = Waiting(heir_id, user, PRIORITIES.index(priority), arrival, job.cost, job.images, job.turn)
        self._jobs[heir_id] = heir
        self._per_user[user] += 1
        if heir.images:
            self._lines[heir.rank].add(heir)
        self.remove(job_id)

    def remove(self, job_id: str) -> None:
        """Nothing when it is not there."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        self._per_user[job.user] -= 1
        if not self._per_user[job.user]:
            del self._per_user[job.user]
        if job.images:
            self._leave(job)
        self._order = None

    def head(self) -> str | None:
        """The job whose next image is to be placed now; None when all are."""
        job = self._shares.next(self._heads())
        return job.job_id if job else None

    def highest(self) -> Priority | None:
        """The highest class of which an image waits to be placed; it is not the head's when a lower one is owed."""
        return next((PRIORITIES[head.rank] for head in self._heads() if head is not None), None)

    def served(self, job_id: str) -> int:
        """The next image of a job was placed: its class and its user are charged for it. Returns the job's turn.

        With its first image the user's turn is over; its others follow before those of the class without a turn.
        """
        job = self._jobs[job_id]
        if job.turn is None:
            self._turns += 1
            self._lines[job.rank].give_turn(job, self._turns)
        self._shares.charge(job, 1, self._heads())
        if job.images == 1:
            self._leave(job)
        job.images -= 1
        self._order = None
        assert job.turn is not None
        return job.turn

    def up_to(self, priority: Priority) -> list[str]:
        """Jobs of this class and of those above it, in serving order."""
        lowest = PRIORITIES.index(priority)
        return [job_id for job_id in self if self._jobs[job_id].rank <= lowest]

    def ahead_of(self, priority: Priority, user: str, *, images: int = 1, image_seconds: float = 0.0) -> list[str]:
        """Jobs that would begin before such a new one, in serving order."""
        arrivals = self._arrivals
        self.add(NEWCOMER, priority, user, images=images, image_seconds=image_seconds)
        order = list(self)
        self.remove(NEWCOMER)
        self._arrivals = arrivals
        return order[: order.index(NEWCOMER)]

    def waiting_of(self, user: str) -> int:
        return self._per_user[user]

    def _heads(self) -> list[Waiting | None]:
        return [line.head() for line in self._lines]

    def _renew(self, job: Waiting, images: int, cost: int) -> int:
        if not job.images:
            self._lines[job.rank].add(job)
        job.images, job.cost = images, cost
        return job.arrival

    def _leave(self, job: Waiting) -> None:
        line = self._lines[job.rank]
        line.remove(job)
        if line.head() is None:
            self._shares.forget(job.rank)

    def _forecast(self) -> list[str]:
        """Plays all turns to come on a copy of the shares."""
        shares, order = self._shares.copy(), list[str]()
        lines = [iter(line) for line in self._lines]
        heads = [next(line, None) for line in lines]
        left = [head.images if head else 0 for head in heads]
        while (job := shares.next(heads)) is not None:
            rank = job.rank
            if left[rank] == job.images:
                order.append(job.job_id)
            images = shares.run(job, left[rank], heads)
            shares.charge(job, images, heads)
            left[rank] -= images
            if not left[rank]:
                head = heads[rank] = next(lines[rank], None)
                left[rank] = head.images if head else 0
        return order
