"""One model's part of the Dispatcher: its queue, its replicas, and the way of its jobs through both.

Nothing of it is shared with another model's: however long the one's queue, or dead its replicas, the other's goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from serve.errors import ModelNotFound
from serve.jobs.accounting import Accounting
from serve.jobs.admission import Admission
from serve.jobs.backlog import Demand
from serve.jobs.estimate import solo_seconds
from serve.jobs.fleet import Backend, Fleet
from serve.jobs.job import Job
from serve.jobs.lifecycle import Lifecycle
from serve.jobs.memory import Memory
from serve.jobs.queue import JobQueue
from serve.jobs.results import Results
from serve.jobs.served import Served
from serve.jobs.store import JobStore
from serve.jobs.tasks import Tasks
from serve.jobs.waiting import WaitingRoom
from serve.messages import Submission
from serve.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all pools work with."""

    backend: Backend
    store: JobStore
    jobs: Memory
    results: Results
    accounting: Accounting
    tasks: Tasks
    told: Callable[[Job], None]
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`tail` is what the names of the model's deployments end with."""

    model: str
    tail: str
    fleet: Fleet
    queue: JobQueue
    room: WaitingRoom
    life: Lifecycle
    admission: Admission
    served: Served

    @classmethod
    def of(cls, settings: Settings, tail: str, shared: Shared) -> Pool:
        """`settings` are the model's own."""
        model, accounting = settings.served_model_name, shared.accounting
        fleet = Fleet(settings.timeouts.heartbeat_s, lambda role: accounting.lost(model, role))
        queue = JobQueue()
        room = WaitingRoom(queue, shared.jobs, fleet, shared.clock, model=model)
        life = Lifecycle(
            model,
            settings.queue.max_attempts,
            shared.backend,
            store=shared.store,
            jobs=shared.jobs,
            fleet=fleet,
            queue=queue,
            room=room,
            results=shared.results,
            accounting=accounting,
            tasks=shared.tasks,
            told=shared.told,
            clock=shared.clock,
        )
        return cls(
            model=model,
            tail=tail,
            fleet=fleet,
            queue=queue,
            room=room,
            life=life,
            admission=Admission(model, settings.queue, fleet, queue, shared.jobs, life.flights, shared.clock),
            served=Served(fleet, shared.store, shared.tasks, tail),
        )

    def demand(self) -> dict[str, Demand]:
        """By role, as the deployments of the model are called."""
        return {role + self.tail: demand for role, demand in self.life.backlog.measure().items()}

    def lose(self, replica_id: str, *, planned: bool = False) -> None:
        self.life.placements.lose(replica_id, planned=planned)


class Pools:
    """All of them, the first model's first. `homes` says which of them draws what was asked of a name."""

    def __init__(self, settings: Settings, make: Callable[[Settings, str], Pool]) -> None:
        self._pools = {model: make(settings.of(model), settings.tail(model)) for model in settings.served}
        self._homes = homes(settings)
        self.first = self._pools[settings.served_model_name]

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def of(self, model: str) -> Pool:
        """Raises ModelNotFound."""
        if (pool := self.find(model)) is None:
            there = ", ".join(self._pools)
            raise ModelNotFound(f"no model {model[:64]!r}", param="model", hint=f"there are: {there}")
        return pool

    def find(self, model: str) -> Pool | None:
        """None where nothing here serves it."""
        return self._pools.get(self._homes.get(model, model))

    def home(self, model: str) -> Pool:
        """The first one's for what nothing serves any more."""
        return self.find(model) or self.first

    def solo_seconds(self, submission: Submission) -> float:
        return solo_seconds(submission, self.home(submission.request.model).fleet.times())


def homes(settings: Settings) -> Mapping[str, str]:
    """The model by each of its names: jobs may have been left behind under one that is an alias now."""
    return {name: model for model in settings.served for name in settings.of(model).model_names}
