"""Single-flight: identical jobs at once are drawn once. One of them leads, the others hear what happens to it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from serve.jobs.cache import Key
from serve.jobs.job import Job, Listener
from serve.messages import PRIORITIES, Event, JobStatus, Preview, Progress, Queued, Started

Begin = Callable[[Job, float], None]


@dataclass(slots=True)
class Flight:
    key: Key
    leader: Job
    followers: dict[str, Job] = field(default_factory=dict)
    mirrors: dict[str, Listener] = field(default_factory=dict)


class Flights:
    """`begin` is told when a follower's work takes its first step, and when that was (Unix seconds).

    A flight is open to newcomers until its leader ends, is told to stop, or is overtaken by another one.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._open: dict[Key, Flight] = {}
        self._of: dict[str, Flight] = {}
        self._followers: dict[str, Job] = {}

    def leader(self, key: Key) -> Job | None:
        """Whom a newcomer could join."""
        flight = self._open.get(key)
        return flight.leader if flight else None

    def lead(self, job: Job, key: Key) -> None:
        """Newcomers join this one from now on."""
        job.cache = "miss"
        self._open[key] = self._of[job.id] = Flight(key, job)

    def join(self, job: Job, leader: Job) -> None:
        """The job, and whoever follows it, is told what has happened to the leader, and what will."""
        flight = self._of[leader.id]
        old = self._of.get(job.id)
        followers = [] if old is None else self._dissolve(old)
        for follower in (job, *followers):
            self._follow(follower, flight, after=0)

    def followers(self, job: Job) -> list[Job]:
        """Of a leader; nobody follows a follower."""
        flight = self._of.get(job.id)
        return list(flight.followers.values()) if flight and flight.leader is job else []

    def follows(self, job: Job) -> bool:
        return job.id in self._followers

    def leave(self, job: Job) -> list[Job]:
        """It ends, or goes its own way; who followed it is left without a leader, and returned."""
        flight = self._of.get(job.id)
        if flight is None:
            return []
        if flight.leader is job:
            return self._dissolve(flight)
        self._unfollow(job, flight)
        return []

    def succeed(self, job: Job) -> Job | None:
        """The highest, then oldest, of its followers leads in its stead, and is returned. The job is out of it."""
        flight = self._of.get(job.id)
        if flight is None or flight.leader is not job or not flight.followers:
            return None
        was_open = self._open.get(flight.key) is flight
        followers = self._dissolve(flight)
        heir = min(followers, key=lambda follower: (PRIORITIES.index(follower.submission.priority), follower.arrival))
        heir.cache = "miss"
        new = self._of[heir.id] = Flight(flight.key, heir)
        if was_open:
            self._open[flight.key] = new
        for follower in followers:
            if follower is not heir:
                self._follow(follower, new, after=heir.seq)
        return heir

    def waiting_of(self, user: str | None = None) -> int:
        """Followers whose work has not begun: all, or those of one user."""
        return sum(
            job.status is JobStatus.QUEUED and user in (None, job.submission.user) for job in self._followers.values()
        )

    def _follow(self, job: Job, flight: Flight, after: int) -> None:
        job.cache = "join"
        self._of[job.id] = flight
        self._followers[job.id] = flight.followers[job.id] = job
        mirror = flight.mirrors[job.id] = self._mirror(job)
        flight.leader.listen(mirror, after)

    def _unfollow(self, job: Job, flight: Flight) -> None:
        del flight.followers[job.id], self._of[job.id], self._followers[job.id]
        flight.leader.listeners.discard(flight.mirrors.pop(job.id))

    def _dissolve(self, flight: Flight) -> list[Job]:
        followers = list(flight.followers.values())
        for follower in followers:
            self._unfollow(follower, flight)
        del self._of[flight.leader.id]
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]
        return followers

    def _mirror(self, job: Job) -> Listener:
        """Its end is its own: it is told when the pictures are its own, too."""

        def hear(event: Event) -> None:
            match event:
                case Queued() if job.status is JobStatus.QUEUED:
                    job.emit(Queued, position=event.position, length=event.length, eta_seconds=event.eta_seconds)
                case Started():
                    self._begin(job, event.at)
                case Progress():
                    job.emit(Progress, step=event.step, steps=event.steps)
                case Preview() if job.submission.previews:
                    job.emit(Preview, image=event.image, index=event.index, key=event.key)

        return hear
