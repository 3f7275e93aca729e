"""The step loop: one thread owns the device and the table of pictures in flight; nobody else launches work on it.

The table is as if all that was launched were done; what it did is told later (`ahead.py`).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
import torch
from torch import Tensor

from serve.engine.ahead import Ahead, Instant, instant
from serve.engine.boarding import board
from serve.engine.decode import Decoder
from serve.engine.flight import Drawn, Flight, Generation, OnStep, Outcome
from serve.engine.forward import Transformer, velocities
from serve.engine.memory import Memory
from serve.engine.pixels import Pixels
from serve.engine.schedule import Policy
from serve.engine.stepping import Moved, Step
from serve.engine.turns import Turn, Turns
from serve.errors import DeadlineExceeded, DeviceLost, OutOfMemory, ZImageError
from serve.messages import Phase, ReplicaState, Span
from serve.metrics.tally import Recorder
from serve.step_times import StepTimes

log = structlog.get_logger()

COLD_RUNS = 2


@dataclass(frozen=True, slots=True)
class _Admit:
    generation: Generation
    on_step: OnStep
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Cancel:
    id: str


class _Stop:
    pass


_Command = _Admit | _Cancel | _Stop


@dataclass(slots=True)
class Engine:
    transformer: Transformer
    decoder: Decoder
    policy: Policy
    times: StepTimes
    memory: Memory = field(default_factory=Memory)
    split_s: float = 0.0
    decode_batch: int = 4
    recorder: Recorder = field(default_factory=Recorder)
    model: str = ""
    clock: Callable[[], float] = time.monotonic
    lost: bool = False
    _turns: Turns = field(init=False)
    _ahead: Ahead = field(init=False)
    _paused: Step | None = None
    _runs: Counter[Hashable] = field(default_factory=Counter)
    _inbox: queue.SimpleQueue[_Command] = field(default_factory=queue.SimpleQueue)
    _flights: dict[str, Flight] = field(default_factory=dict)
    _landing: list[list[Flight]] = field(default_factory=list)
    _ashore: list[_Admit] = field(default_factory=list)
    _thread: threading.Thread | None = None
    _stopping: bool = False
    _beat: float = 0.0

    def __post_init__(self) -> None:
        self._turns = Turns(self.policy, self.times, self.split_s)
        self._ahead = Ahead(self.clock, asynchronous=self.transformer.device.type == "cuda")

    def start(self) -> None:
        self._beat = self.clock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._inbox.put(_Stop())
            self._thread.join()

    def silent_s(self) -> float:
        """Seconds since the thread last began a step or took a command while it has work; inf when it is dead."""
        if self._thread is None or not self._thread.is_alive():
            return float("inf")
        busy = bool(self._flights) or not self._inbox.empty()
        return self.clock() - self._beat if busy else 0.0

    def report(self, state: ReplicaState, cap_px: int) -> ReplicaState:
        """What a heartbeat says of the device; `cap_px` is the longest side that is served."""
        if self.lost:
            state = replace(state, phase=Phase.LOST)
        if vram := self.memory.vram():
            state = replace(state, vram_used=vram.used, vram_reserved=vram.reserved, vram_total=vram.total)
        return replace(
            state,
            step_times=self.times.to_table(),
            max_px=self.memory.max_px(cap_px, rows=1),
            max_guided_px=self.memory.max_px(cap_px, rows=2),
            max_input_px=self.memory.max_input_px(cap_px),
        )

    async def draw(self, generation: Generation, on_step: OnStep) -> Drawn:
        """From noise to pixels. `on_step(step, preview)` is called in the engine's thread.

        Cancelling the caller drops the generation at the next step boundary. Raises DeadlineExceeded,
        TooLargeForMemory, OutOfMemory, and DeviceLost: then this and all other pictures have to be drawn elsewhere.
        """
        loop = asyncio.get_running_loop()
        outcome = Outcome(loop, loop.create_future())
        self._inbox.put(_Admit(generation, on_step, outcome))
        try:
            drawn: Drawn = await outcome.future
        except asyncio.CancelledError:
            self._inbox.put(_Cancel(generation.id))
            raise
        return drawn

    def _run(self) -> None:
        while True:
            self._call_aboard()
            self._receive()
            if self._stopping:
                return
            self._drop_expired()
            before = len(self._ahead)
            waiting = [flight.entry for flight in self._flights.values() if not flight.arrived]
            turn = self._turns.next(waiting, self.clock())
            if turn is not None:
                self._take(turn)
            self._land()
            self._tell(before)

    def _receive(self) -> None:
        """Everything that has arrived, until the device needs more work; sleeps when there is none to step."""
        while True:
            idle = not self._flights and not self._ahead and not self._ashore
            try:
                command = self._inbox.get(timeout=None if idle else (leisure_s := self._ahead.leisure_s()))
            except queue.Empty:
                if leisure_s:
                    continue
                return
            self._beat = self.clock()
            if isinstance(command, _Stop):
                self._stopping = True
                return
            if isinstance(command, _Cancel):
                self._flights.pop(command.id, None)
                self._ashore = [waiting for waiting in self._ashore if waiting.generation.id != command.id]
            else:
                self._admit(command)

    def _call_aboard(self) -> None:
        """Whose input picture had to wait for the memory of a paused step."""
        if self._ashore and not self._flights and self._paused is not None:
            self._leave(self._paused)  # all its members have left
        waiting, self._ashore = self._ashore, []
        for command in waiting:
            self._admit(command)

    def _admit(self, command: _Admit) -> None:
        if self.lost:
            command.outcome.error(DeviceLost("the device of this replica is lost"))
            return
        g = command.generation
        encoding = self.memory.encode_bytes(g.width * g.height) if g.encodes else 0
        if encoding and not self.memory.reserve(encoding):
            self._ashore.append(command)
            return
        try:
            self._flights[g.id] = self._board(command)
        except Exception as error:  # whatever it is, it belongs to this one request
            command.outcome.error(self._explain(g, error))
        self.memory.release(encoding)

    def _board(self, command: _Admit) -> Flight:
        return board(
            command.generation,
            command.outcome,
            command.on_step,
            transformer=self.transformer,
            decoder=self.decoder,
            memory=self.memory,
            now=self.clock(),
        )

    def _drop_expired(self) -> None:
        now = self.clock()
        for flight in list(self._flights.values()):
            if flight.generation.hard_deadline and now > flight.generation.deadline:
                done = f"{flight.taken} of {flight.generation.steps_taken} steps were done"
                self._fail(flight, DeadlineExceeded(f"the deadline passed when {done}"))

    # --- steps

    def _take(self, turn: Turn) -> None:
        """One part of a step: of the paused one, or the first of a new one where the memory for it is free."""
        paused = self._turns.paused
        if self._paused is not None and self._paused.turn is not paused:
            self._leave(self._paused)  # all its members have left
        step = self._paused
        if step is None or turn is not paused:
            step = self._begin(turn) or self._paused
            if turn is paused:
                self._paused = step
        assert step is not None
        self._advance(step)

    def _begin(self, turn: Turn) -> Step | None:
        """None when it has to wait until the paused step gives its memory back; too large a batch is halved."""
        shape = turn.batch[0].shape
        while not self.memory.fit_together(shape, len(turn.batch)):
            turn.batch = turn.batch[: len(turn.batch) // 2]
        needed = self.memory.step_bytes(shape, len(turn.batch))
        if not self.memory.reserve(needed):
            return None
        flights = [self._flights[entry.id] for entry in turn.batch]
        for flight in flights:
            if flight.started_at == 0:
                flight.started_at = time.time()
                self._progress(flight, 0, None)
        return Step(turn, shape, flights, velocities(self.transformer, flights, turn.parts), needed)

    def _leave(self, step: Step) -> None:
        self.memory.release(step.reserved)
        if step is self._paused:
            self._paused = None

    def _advance(self, step: Step) -> None:
        turn, failure = step.turn, None
        self._beat = self.clock()
        began = instant(self.transformer.device)
        try:
            velocities = next(step.work)
        except Exception as error:
            failure = error
        turn.done += 1
        if failure is not None:
            turn.done = turn.parts
            self._leave(step)
            if isinstance(failure, torch.OutOfMemoryError) and len(step.flights) > 1:
                self.memory.did_not_fit(turn.batch[0].shape, len(step.flights))
            self._recover(step.flights, failure, self._step_again)
            return
        tell, expected_s = step.add, self._turns.seconds(turn.batch) / turn.parts
        if velocities is not None:
            self._leave(step)
            moved = self._move(step, velocities)
            tell = partial(self._stepped, step, moved)
        self._launched(began, expected_s, tell)

    def _launched(self, began: Instant, expected_s: float, tell: Callable[[float], None]) -> None:
        self._ahead.add(began, instant(self.transformer.device), expected_s, tell)

    def _tell(self, before: int) -> None:
        """What was launched `before` this turn's work; all, where the device has nothing to do beside it."""
        ahead = self._ahead.asynchronous and len(self._ahead) > before
        try:
            self._ahead.tell(before if ahead else len(self._ahead))
        except Exception as error:
            self._lose(error)

    def _step_again(self, flights: list[Flight]) -> None:
        turn = Turn([flight.entry for flight in flights if flight.entry.id in self._flights])
        step = self._begin(turn) if turn.batch else None
        if step is not None:  # else it waits for the memory of the paused step, and is chosen again
            self._advance(step)

    def _move(self, step: Step, velocities: list[Tensor]) -> list[Moved]:
        """Those that have taken their last step are to land."""
        moved, arrived = list[Moved](), list[Flight]()
        for flight, velocity in zip(step.flights, velocities, strict=True):
            if not self._flies(flight):
                continue  # it left between two parts
            try:
                moved.append(Moved.along(flight, velocity, self.decoder))
            except Exception as error:
                self._recover([flight], error, self._step_again)
                continue
            if flight.arrived:
                arrived.append(flight)
        self._landing += [arrived[at : at + self.decode_batch] for at in range(0, len(arrived), self.decode_batch)]
        return moved

    def _stepped(self, step: Step, moved: list[Moved], seconds: float) -> None:
        step.add(seconds)
        shape = step.shape
        if self._is_warm((shape, len(step.flights), step.turn.parts)):
            self.times.observe_step(shape.tokens, shape.rows * len(step.flights), step.seconds, shape.controlnet)
        self.recorder.observe("zimage_step_duration_seconds", step.seconds, self.model)
        self.recorder.observe("zimage_batch_size", len(step.flights), self.model, "step")
        for one in moved:
            if self._flies(one.flight):
                one.flight.took(step.seconds, len(step.flights))
                self._progress(one.flight, one.step, None if one.preview is None else one.preview.numpy())

    def _is_warm(self, work: Hashable) -> bool:
        """On a GPU kernels are loaded in the first run, and recorded in the second: both say nothing of the others."""
        self._runs[work] += 1
        return self.transformer.device.type != "cuda" or self._runs[work] > COLD_RUNS

    def _progress(self, flight: Flight, step: int, preview: Pixels | None) -> None:
        try:
            flight.on_step(step, preview)
        except Exception as error:  # of whoever watches, such as a loop that is closed
            self._fail(flight, error)

    def _flies(self, flight: Flight) -> bool:
        return self._flights.get(flight.entry.id) is flight

    def _land(self) -> None:
        """Decodes what has taken its last step, at once if the memory for it is not held by a paused step."""
        landing, self._landing = self._landing, []
        for flights in landing:
            needed = self.memory.decode_bytes(flights[0].entry.shape.pixels, len(flights))
            if len(flights) > 1 and not self.memory.fits(needed):
                self._landing += [[flight] for flight in flights]
            elif self.memory.reserve(needed):
                self._decode(flights)
                self.memory.release(needed)
            else:
                self._landing.append(flights)

    def _decode(self, flights: list[Flight]) -> None:
        """Latents of one shape together: their step made them ready together."""
        flights = [flight for flight in flights if self._flies(flight)]
        if not flights:
            return
        self._beat, failure = self.clock(), None
        began = instant(self.transformer.device)
        try:
            pixels = self.decoder.launch([flight.picture(flight.latents) for flight in flights])
        except Exception as error:
            failure = error
        if failure is not None:
            self._recover(flights, failure, self._decode)
            return
        expected_s = len(flights) * self.times.decode_seconds(flights[0].entry.shape.pixels)
        self._launched(began, expected_s, partial(self._decoded, flights, pixels))

    def _decoded(self, flights: list[Flight], pixels: Tensor, seconds: float) -> None:
        self.times.observe_decode(flights[0].entry.shape.pixels, seconds / len(flights))
        self.recorder.observe("zimage_batch_size", len(flights), self.model, "decode")
        ended = time.time()
        decoding = Span(ended - seconds, ended)
        for flight, picture in zip(flights, pixels.numpy(), strict=True):
            if self._flies(flight):
                del self._flights[flight.entry.id]
                spent = flight.denoise_s, seconds, flight.executions
                flight.outcome.result(Drawn(picture, flight.started_at, *spent, decoding.began, decoding))

    # --- faults

    def _recover(self, flights: list[Flight], error: Exception, again: Callable[[list[Flight]], None]) -> None:
        """Tries the same work again in halves, so that a bad member fails only itself; their state is untouched.

        A single one is tried again, once, when memory ran out.
        """
        if isinstance(error, torch.OutOfMemoryError):
            error.__traceback__ = None  # its frames hold what is to be freed
            self.memory.free()
        elif not self.lost and not self.memory.alive():
            self._lose(error)
        if self.lost:
            return
        if len(flights) > 1:
            half = len(flights) // 2
            again(flights[:half])
            again(flights[half:])
            return
        (flight,) = flights
        if isinstance(error, torch.OutOfMemoryError) and flight.retried != flight.step:
            flight.retried = flight.step
            again(flights)
            return
        # its caller is told no more than that
        log.error("a step failed", task_id=flight.entry.id, **flight.generation.origin, exc_info=error)
        if not isinstance(error, torch.OutOfMemoryError):
            error = ZImageError("the model failed on this request")
        self._fail(flight, self._explain(flight.generation, error))

    def _explain(self, generation: Generation, error: Exception) -> Exception:
        """What its caller is told."""
        if self.lost or not self.memory.alive():
            if not self.lost:
                self._lose(error)
            return DeviceLost("the device of this replica is lost")
        if isinstance(error, torch.OutOfMemoryError):
            return OutOfMemory(
                f"the GPU's memory ran out at {generation.width}x{generation.height}, also when it was tried again",
                hint="ask for a smaller size, or later: something else may use the GPU's memory",
            )
        return error

    def _fail(self, flight: Flight, error: Exception) -> None:
        del self._flights[flight.entry.id]
        flight.outcome.error(error)

    def _lose(self, error: Exception) -> None:
        """Nothing more can be done on this device, ever; the pictures are drawn elsewhere."""
        self.lost = True
        self._ahead.forget()
        log.error("the device is lost", exc_info=error)
        for flight in list(self._flights.values()):
            self._fail(flight, DeviceLost("the device of this replica is lost"))
        for command in self._ashore:
            command.outcome.error(DeviceLost("the device of this replica is lost"))
        self._ashore = []
