"""Identical jobs share their work: who draws, who joins, who takes over, and how each gets pictures of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from serve.errors import NotFound
from serve.jobs.flights import Flights
from serve.jobs.job import Job
from serve.jobs.pictures import owned
from serve.jobs.placements import Placements
from serve.jobs.results import Results, joined
from serve.jobs.waiting import WaitingRoom
from serve.messages import ImageError, StoredImage, Succeeded, Terminal, Timings

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Ends(Protocol):
    """Who is told what became of a job's pictures."""

    def finish(self, job: Job) -> None:
        """All of its pictures are drawn, or could not be."""

    def again(self, job: Job, image: int) -> None:
        """A picture is to be drawn once more."""

    def end(self, job: Job, kind: type[Terminal], **data: Any) -> None: ...

    def broken(self, job: Job, error: Exception) -> None:
        """It cannot get its pictures."""

    def freed(self) -> None: ...


class Sharing:
    def __init__(
        self,
        results: Results,
        flights: Flights,
        room: WaitingRoom,
        placements: Placements,
        ends: Ends,
        spawn: Spawn,
    ) -> None:
        self._results = results
        self._flights = flights
        self._room = room
        self._placements = placements
        self._ends = ends
        self._spawn = spawn

    def enter(self, job: Job) -> None:
        """Joins an identical job that is under way, or waits for a GPU itself.

        Whoever would be drawn sooner leads: nobody waits longer because he has joined another one.
        """
        key = self._results.key(job.submission, job.cache_key)
        leader = self._flights.leader(key) if key else None
        overtakes = leader is not None and self._room.overtakes(job, leader)
        if leader is not None and not overtakes and _may_join(job, leader):
            self._room.arrive(job)
            self._flights.join(job, leader)
            return
        self._room.enter(job)
        if key is not None and (leader is None or overtakes):
            self._flights.lead(job, key)
            if leader is not None and leader.untouched and _may_join(leader, job):
                self._room.leave(leader)
                self._flights.join(leader, job)

    def hand_over(self, job: Job) -> Job | None:
        """What was begun for it goes on for one that has joined it, and leads now."""
        heir = self._flights.succeed(job)
        if heir is not None:
            heir.take_over(job)
            self._placements.hand_over(job, heir)
            self._room.hand_over(job, heir)
            self._ends.finish(heir)
        return heir

    def adopt(self, job: Job) -> bool:
        """False while it has pictures that were drawn for one that is gone: then they become its own first."""
        if all(owned(job.submission, answer.image) for answer in job.finished.values()):
            return True
        self._spawn(self._adopt(job))
        return False

    def discard(self, job: Job) -> None:
        """Pictures that it had taken over, and that nobody wants any more."""
        foreign = [answer.image for answer in job.finished.values() if not owned(job.submission, answer.image)]
        if foreign:
            self._spawn(self._results.drop(foreign))

    def land(self, followers: list[Job], end: Succeeded) -> None:
        """The one that they had joined has its pictures, and they get them."""
        for follower in followers:
            self.give(follower, end.images, end.timings, end.errors)

    def give(
        self, job: Job, images: tuple[StoredImage, ...], timings: Timings, errors: tuple[ImageError, ...] = ()
    ) -> None:
        self._spawn(self._give(job, images, timings, errors))

    async def _adopt(self, job: Job) -> None:
        for image, answer in list(job.finished.items()):
            if owned(job.submission, answer.image):
                continue
            try:
                own = await self._results.adopt(job, (answer.image,))
            except NotFound:  # its owner has deleted it
                self._ends.again(job, image)
                continue
            except Exception as error:  # whatever it is, it ends this job and no other
                self._ends.broken(job, error)
                return
            if own is None:
                return
            job.finished[image] = replace(answer, image=own[0])
            await self._results.drop([answer.image])
        self._ends.finish(job)
        self._ends.freed()

    async def _give(
        self, job: Job, images: tuple[StoredImage, ...], timings: Timings, errors: tuple[ImageError, ...]
    ) -> None:
        try:
            own = await self._results.adopt(job, images)
        except NotFound:  # their owner has deleted them
            if job.wanted:
                self.enter(job)
                self._ends.freed()
            return
        except Exception as error:  # whatever it is, it ends this job and no other
            self._ends.broken(job, error)
            return
        if own is not None:
            job.cache, job.cache_key = "join", None
            spent = joined(timings, job.started_at, job.created_at)
            self._ends.end(job, Succeeded, images=own, timings=spent, cache="join", errors=errors)


def _may_join(job: Job, leader: Job) -> bool:
    """One that wants previews needs a leader that has them made."""
    submission = job.submission
    return submission.cache == "auto" and submission.previews in (0, leader.submission.previews)
