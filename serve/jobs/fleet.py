"""The replicas that are alive, what each is doing, and which one has room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from serve.jobs.wake import Sleepers
from serve.messages import Generated, ImageRequest, Phase, ReplicaState, Task
from serve.step_times import StepTimes

SILENT_BEATS = 5
REMEMBERED = 100  # replicas that have left
ROLES = ("text_encoder", "denoiser")
NONE = {("adapter", None), ("controlnet", None)}
HELD_ROOM = 2  # images more on a replica are quicker than the load of an adapter


class ReplicaGone(Exception):
    """The replica that held a task died or was replaced; `replica_id` is None when it was a text encoder.

    `killed` by Ray Serve, such as one that was to be stopped and took too long, it did not die by itself. Of one that
    is `dead` Ray has told everybody so: its process may live on, where its node was cut off, and is given no more work.
    """

    def __init__(self, replica_id: str | None, killed: bool = False, dead: bool = False) -> None:
        super().__init__(replica_id, killed, dead)
        self.replica_id = replica_id
        self.killed = killed
        self.dead = dead


class Backend(Protocol):
    """The GPU replicas as the Dispatcher calls them; embeddings are opaque, they never pass through it."""

    def encode(self, request: ImageRequest) -> object: ...

    async def generate(self, task: Task, embeddings: object) -> Generated:
        """Raises ReplicaGone, or the task's own error. Cancelling it stops the task at the replica's next step."""


@dataclass(slots=True)
class Replica:
    state: ReplicaState
    beat: float
    times: StepTimes
    placed: set[str] = field(default_factory=set)
    reserved: bool = False

    @property
    def room(self) -> int:
        if self.reserved or self.state.phase is not Phase.READY:
            return 0
        return self.state.slots - len(self.placed)

    @property
    def held(self) -> set[tuple[str, str | None]]:
        adapters, controlnets = self.state.adapters_held, self.state.controlnets_held
        return {("adapter", name) for name in adapters} | {("controlnet", name) for name in controlnets}

    def attraction(self, request: ImageRequest) -> int:
        """The emptiest is the best, but one that holds the adapter and the ControlNet may be a little fuller."""
        wanted = {("adapter", request.adapter), ("controlnet", request.controlnet)} - NONE
        held = bool(wanted) and wanted <= self.held
        return self.room + HELD_ROOM if held and self.room > 0 else self.room


class Fleet:
    def __init__(self, heartbeat_s: float, lost: Callable[[str], None] = lambda _: None) -> None:
        """`lost` is told the role of each replica that is forgotten."""
        self._lost = lost
        self._silence_s = SILENT_BEATS * heartbeat_s
        self._replicas: dict[str, Replica] = {}
        self._engines: dict[str, str] = {}
        self._adapters: dict[str, list[str]] = {}
        self._controlnets: dict[str, list[str]] = {}
        self._sole: str | None = None
        self._times = StepTimes()
        self._left: deque[str] = deque(maxlen=REMEMBERED)
        self.sleepers = Sleepers()
        self.was_ready = False

    def beat(self, state: ReplicaState, now: float) -> bool:
        """Takes a heartbeat; True when the replica became ready with it."""
        if state.replica_id in self._left:
            return False
        known = self._replicas.get(state.replica_id)
        ready_before = known is not None and known.state.phase is Phase.READY
        times = StepTimes.from_table(state.step_times)
        if known is None:
            self._replicas[state.replica_id] = Replica(state, now, times)
        else:
            known.state, known.beat, known.times = state, now, times
        if state.phase is Phase.READY:
            self.sleepers.awake(state.role, state.warmup_s, now)
            self._times = times if state.role == "denoiser" else self._times
        ready = {r.state.engine for r in self._role(state.role) if r.state.phase is Phase.READY} - {""}
        if ready:
            self._engines[state.role] = "+".join(sorted(ready))
        self._learn_files()
        self.was_ready = self.was_ready or self.whole
        return state.phase is Phase.READY and not ready_before

    def _learn_files(self) -> None:
        ready = [r.state for r in self._role("denoiser") if r.state.phase is Phase.READY]
        if ready:
            self._adapters = _by_name([state.adapters for state in ready])
            self._controlnets = _by_name([state.controlnets for state in ready])

    def drop(self, replica_id: str, *, planned: bool = False) -> set[str]:
        """Forgets a replica; returns the tasks that it held. One whose end was `planned` is no loss."""
        replica = self._replicas.pop(replica_id, None)
        if replica is None:
            return set()
        if self._sole in replica.placed:
            self._sole = None
        role = replica.state.role
        if not planned:
            self._lost(role)
        elif _worked(replica) and not any(map(_worked, self._role(role))):
            self.sleepers.asleep(role)
        return replica.placed

    def leave(self, replica_id: str) -> None:
        """What it says from now on was said before, and overtaken."""
        if replica_id not in self._left:
            self._left.append(replica_id)

    def withdraw(self, replica_id: str) -> bool:
        """It stops from now on, until it says something else; False where it is not known."""
        if (replica := self._replicas.get(replica_id)) is None:
            return False
        if replica.state.phase is Phase.READY:
            replica.state = replace(replica.state, phase=Phase.STOPPING)
        return True

    def stopping(self, replica_id: str) -> bool:
        replica = self._replicas.get(replica_id)
        return replica is not None and replica.state.phase is Phase.STOPPING

    def silent(self, now: float) -> list[str]:
        return [id for id, replica in self._replicas.items() if now - replica.beat > self._silence_s]

    def place(self, task_id: str, request: ImageRequest, *, alone: bool, sole: bool = False) -> str | None:
        """Reserves a slot on the emptiest denoiser whose memory takes it; None when they are full.

        What no memory takes, since replicas have changed, goes to any of them and is refused there.

        A task that has lost a replica before is placed `alone`, on an empty one: if it is what kills replicas, it
        kills no neighbour's work again, and is found out. A `sole` one has the whole fleet to itself.
        """
        denoisers = self._role("denoiser")
        if self._sole is not None or (sole and any(replica.placed for replica in denoisers)):
            return None
        able = [replica for replica in denoisers if replica.state.takes(request)]
        replica = max(able or denoisers, key=lambda replica: replica.attraction(request), default=None)
        if replica is None or replica.room <= 0 or (alone and replica.placed):
            return None
        replica.placed.add(task_id)
        replica.reserved = alone
        self._sole = task_id if sole else None
        return replica.state.replica_id

    def release(self, replica_id: str, task_id: str) -> None:
        if self._sole == task_id:
            self._sole = None
        if replica_id in self._replicas:
            replica = self._replicas[replica_id]
            replica.placed.discard(task_id)
            replica.reserved = replica.reserved and bool(replica.placed)

    def replicas(self) -> list[Replica]:
        return sorted(self._replicas.values(), key=lambda replica: (replica.state.role, replica.state.replica_id))

    def ready(self, role: str) -> int:
        return sum(replica.state.phase is Phase.READY for replica in self._role(role))

    def serves(self, role: str) -> bool:
        """It takes work: some replica is ready, or one will be started for it, or in the place of one that stops."""
        stopping = any(replica.state.phase is Phase.STOPPING for replica in self._role(role))
        return self.ready(role) > 0 or stopping or role in self.sleepers

    def busy(self, role: str) -> int:
        return sum(bool(replica.placed) for replica in self._role(role))

    @property
    def whole(self) -> bool:
        """Every role is ready: pictures can be drawn."""
        return self.ready("denoiser") > 0 and self.ready("text_encoder") > 0

    @property
    def engine(self) -> str:
        """What draws the pictures: all that are ready, denoisers and text encoders, or those that were the last."""
        return "/".join(engine for _, engine in sorted(self._engines.items()))

    def engine_of(self, request: ImageRequest) -> str:
        """With the files of the adapter and the ControlNet that a request names; empty while nobody knows them."""
        known = [(request.adapter, self._adapters), (request.controlnet, self._controlnets)]
        files = [found.get(name, []) for name, found in known if name is not None]
        if not self.engine or not all(files):
            return ""
        return "+".join([self.engine, *(digest for digests in files for digest in digests)])

    def states(self) -> list[ReplicaState]:
        return [replica.state for replica in self._replicas.values()]

    def times(self) -> StepTimes:
        """Of any ready denoiser, else of the last one; empty before the first."""
        ready = (replica.times for replica in self._role("denoiser") if replica.state.phase is Phase.READY)
        return next(ready, self._times)

    def asleep(self) -> bool:
        """It takes work, and has nobody yet to do it."""
        return all(map(self.serves, ROLES)) and not all(map(self.ready, ROLES))

    def sleep(self, seconds: Mapping[str, float | None], times: StepTimes) -> None:
        """As an earlier Dispatcher has known it."""
        self.sleepers.restore(seconds)
        self._times = times

    def outlook(self, now: float) -> tuple[int, float]:
        """How many denoisers draw, and in how many seconds; (0, 0.0) when nobody knows.

        One that sleeps is started for the first job that comes.
        """
        if not self.asleep():
            return self.ready("denoiser"), 0.0
        starts_in = self.sleepers.wait_s(now)
        return (0, 0.0) if starts_in is None else (max(1, self.ready("denoiser")), starts_in)

    def largest_px(self, request: ImageRequest) -> int | None:
        """The side of the largest such picture that some ready denoiser's memory takes; None when it takes this one."""
        ready = [replica.state for replica in self._role("denoiser") if replica.state.phase is Phase.READY]
        if not ready or any(state.takes(request) for state in ready):
            return None
        return max(state.largest_px(request) or 0 for state in ready)

    def starting(self) -> tuple[Phase, float]:
        """The least advanced of the roles, each judged by its most advanced replica."""
        order = list(Phase)
        best = [
            max(
                ((replica.state.phase, replica.state.fraction) for replica in self._role(role)),
                key=lambda progress: (order.index(progress[0]), progress[1]),
                default=(Phase.STARTING, 0.0),
            )
            for role in ROLES
        ]
        return min(best, key=lambda progress: (order.index(progress[0]), progress[1]))

    def _role(self, role: str) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.state.role == role]


def _worked(replica: Replica) -> bool:
    """It has been ready: its planned end is no failed start."""
    return replica.state.phase in (Phase.READY, Phase.STOPPING)


def _by_name(served: list[dict[str, str]]) -> dict[str, list[str]]:
    """The digests that replicas have for each name."""
    names = {name for files in served for name in files}
    return {name: sorted({files[name] for files in served if name in files}) for name in names}
