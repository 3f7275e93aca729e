"""Images on replicas: each from the slot that it is given to its answer, its error, or the loss of its replica."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from serve.errors import DeviceLost
from serve.jobs.fleet import Backend, Fleet, ReplicaGone
from serve.jobs.job import Job
from serve.messages import Generated, Task


@dataclass(slots=True)
class Placement:
    job: Job
    task: Task
    drive: asyncio.Task[None] | None = None
    lost: bool = False


class Outcomes(Protocol):
    """Who is told how placements end; `freed` comes last, and always."""

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

    def place(self, job: Job, image: int, deadline_in: Callable[[], float]) -> bool:
        """False when there is no room for it."""
        task_id = f"{job.id}-{image}.{job.attempt}"
        replica_id = self._fleet.place(task_id, job.submission.request, alone=job.losses > 0)
        if replica_id is None:
            return False
        if job.embeddings is None:
            job.embeddings = contextvars.Context().run(self._backend.encode, job.submission.request)
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
        )
        placement = self._placed[task_id] = Placement(job, task)
        placement.drive = self._spawn(self._drive(placement, job.embeddings))
        return True

    def get(self, task_id: str) -> Placement | None:
        return self._placed.get(task_id)

    def stop(self, job: Job | None = None) -> list[asyncio.Task[None]]:
        """Cancels what is placed of a job, or everything; what it returns has ended when the replicas have stopped."""
        mine = (placement.drive for placement in self._placed.values() if job is None or placement.job is job)
        drives = [drive for drive in mine if drive is not None and drive is not asyncio.current_task()]
        for drive in drives:
            drive.cancel()
        return drives

    def lose(self, replica_id: str) -> None:
        """The replica is gone: all that it held is lost."""
        for task_id in self._fleet.drop(replica_id):
            placement = self._placed.get(task_id)
            if placement is not None and placement.drive is not asyncio.current_task():
                placement.lost = True
                assert placement.drive is not None
                placement.drive.cancel()

    async def _drive(self, placement: Placement, embeddings: object) -> None:
        task = placement.task
        try:
            answer = await self._backend.generate(task, embeddings)
        except asyncio.CancelledError:
            if not placement.lost:
                raise
            self._outcomes.lost(placement)
        except DeviceLost:
            self.lose(task.replica_id)
            self._outcomes.lost(placement)
        except ReplicaGone as gone:
            if gone.replica_id is not None:
                self.lose(gone.replica_id)
            self._outcomes.lost(placement)
        except Exception as error:  # whatever it is, it ends this job and no other
            self._outcomes.failed(placement, error)
        else:
            self._outcomes.generated(placement, answer)
        finally:
            del self._placed[task.id]
            self._fleet.release(task.replica_id, task.id)
            self._outcomes.freed()
