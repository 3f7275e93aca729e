"""Images on replicas: each from the slot that it is given to its answer, its error, or the loss of its replica."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from serve.errors import DeviceLost
from serve.jobs.fleet import Backend, Fleet, ReplicaGone
from serve.jobs.job import Job
from serve.messages import Generated, Task


@dataclass(slots=True)
class Placement:
    """One image on a replica, drawn for `job`, which need not be the one that it was placed for.

    `attempt` is that of the job when it got the image. When its replica is `lost`, `planned` says that it was stopped
    on purpose.
    """

    job: Job
    task: Task
    attempt: int
    drive: asyncio.Task[None] | None = None
    begun: bool = False
    lost: bool = False
    planned: bool = False

    def cancel(self) -> None:
        """Once it has begun: a task that is cancelled before never enters its `try`, and nobody hears of its end."""
        assert self.drive is not None
        if self.begun:
            self.drive.cancel()
        else:
            asyncio.get_running_loop().call_soon(self.drive.cancel)  # which comes after its first step


class Outcomes(Protocol):
    """Who is told how placements end; `freed` comes last, and always."""

    async def placing(self, job: Job) -> None:
        """Returns when it is stored that the job is on a replica."""

    def generated(self, placement: Placement, answer: Generated) -> None: ...

    def lost(self, placement: Placement) -> None: ...

    def failed(self, placement: Placement, error: Exception) -> None: ...

    def freed(self) -> None: ...


class Placements:
    def __init__(
        self,
        backend: Backend,
        fleet: Fleet,
        outcomes: Outcomes,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._backend = backend
        self._fleet = fleet
        self._outcomes = outcomes
        self._spawn = spawn
        self._placed: dict[str, Placement] = {}

    def place(self, job: Job, image: int, deadline_in: Callable[[], float], *, sole: bool) -> bool:
        """False when there is no room for it; `sole` while nothing else is anywhere."""
        task_id = f"{job.id}-{image}.{job.attempt}"
        alone = job.losses > 0 or job.crashes > 0
        replica_id = self._fleet.place(task_id, job.submission.request, alone=alone, sole=sole)
        if replica_id is None:
            return False
        task = Task(
            id=task_id,
            job_id=job.id,
            image=image,
            asset_id=f"{job.id}-{image}",
            request=job.submission.request,
            prompt_tokens=job.submission.prompt_tokens,
            previews=job.submission.previews,
            deadline_in=deadline_in(),
            hard_deadline=job.hard_deadline,
            attempt=job.attempt,
            replica_id=replica_id,
            user=job.submission.user,
            request_id=job.submission.request_id,
            traceparent=job.submission.traceparent,
        )
        job.placed.add(image)
        placement = self._placed[task_id] = Placement(job, task, job.attempt)
        placement.drive = self._spawn(self._drive(placement))
        return True

    def get(self, task_id: str) -> Placement | None:
        return self._placed.get(task_id)

    def stop(self, job: Job | None = None) -> list[asyncio.Task[None]]:
        """Cancels what is placed of a job, or everything; what it returns has ended when the replicas have stopped."""
        mine = [placement for placement in self._placed.values() if job is None or placement.job is job]
        others = [placement for placement in mine if placement.drive is not asyncio.current_task()]
        for placement in others:
            placement.cancel()
        return [placement.drive for placement in others if placement.drive is not None]

    def hand_over(self, job: Job, heir: Job) -> None:
        """What is placed of a job goes on for another one, which has taken over its work."""
        for placement in self._placed.values():
            if placement.job is job:
                placement.job, placement.attempt = heir, heir.attempt

    def lose(self, replica_id: str, *, planned: bool = False) -> None:
        """The replica is gone: all that it held is lost. `planned`: it was stopped on purpose."""
        for task_id in self._fleet.drop(replica_id, planned=planned):
            placement = self._placed.get(task_id)
            if placement is not None and placement.drive is not asyncio.current_task():
                placement.lost, placement.planned = True, planned
                placement.cancel()

    async def _drive(self, placement: Placement) -> None:
        task = placement.task
        placement.begun = True
        try:
            answer = await self._generate(placement.job, task)
        except asyncio.CancelledError:
            if not placement.lost:
                raise
            self._outcomes.lost(placement)
        except DeviceLost:
            self.lose(task.replica_id)
            self._outcomes.lost(placement)
        except ReplicaGone as gone:
            if gone.replica_id is not None:
                placement.planned |= gone.killed and self._fleet.stopping(gone.replica_id)
                self.lose(gone.replica_id, planned=placement.planned)
                if gone.dead:
                    self._fleet.leave(gone.replica_id)
            self._outcomes.lost(placement)
        except Exception as error:  # whatever it is, it ends this job and no other
            self._outcomes.failed(placement, error)
        else:
            self._outcomes.generated(placement, answer)
        finally:
            del self._placed[task.id]
            self._fleet.release(task.replica_id, task.id)
            self._outcomes.freed()

    async def _generate(self, job: Job, task: Task) -> Generated:
        if job.inherited:  # it may be what has ended the service before: the next one shall know
            await self._outcomes.placing(job)
        if job.embeddings is None:
            job.embeddings = self._backend.encode(job.submission.request)
        return await self._backend.generate(task, job.embeddings)
