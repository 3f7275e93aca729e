"""The step loop: one thread owns the device and the table of pictures in flight; nobody else launches work on it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import structlog
import torch
from torch import Tensor

from serve.engine.decode import Decoder
from serve.engine.flight import Drawn, Flight, Generation, OnStep, Outcome
from serve.engine.forward import Transformer, velocities
from serve.engine.memory import Memory
from serve.engine.reference import begin
from serve.engine.schedule import Entry, Policy, Shape
from serve.engine.turns import Turn, Turns
from serve.engine.zimage import pad_length
from serve.errors import DeadlineExceeded, DeviceLost, OutOfMemory, ZImageError
from serve.messages import Phase, ReplicaState, Span
from serve.metrics.tally import Recorder
from serve.step_times import StepTimes

log = structlog.get_logger()


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
class _Step:
    """A step under way. `work` yields None after each part but the last, and then one velocity for each flight."""

    turn: Turn
    flights: list[Flight]
    work: Iterator[list[Tensor] | None]
    reserved: int
    seconds: float = 0.0


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
    _paused: _Step | None = None
    _inbox: queue.SimpleQueue[_Command] = field(default_factory=queue.SimpleQueue)
    _flights: dict[str, Flight] = field(default_factory=dict)
    _landing: list[list[Flight]] = field(default_factory=list)
    _ashore: list[_Admit] = field(default_factory=list)
    _thread: threading.Thread | None = None
    _stopping: bool = False
    _beat: float = 0.0

    def __post_init__(self) -> None:
        self._turns = Turns(self.policy, self.times, self.split_s)

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
            waiting = [flight.entry for flight in self._flights.values() if not flight.arrived]
            turn = self._turns.next(waiting, self.clock())
            if turn is not None:
                self._take(turn)
            self._land()

    def _receive(self) -> None:
        """Everything that has arrived; sleeps only when there is nothing to step."""
        while not (self._flights or self._ashore) or not self._inbox.empty():
            command = self._inbox.get()
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
        encoding = 0 if g.reference is None else self.memory.encode_bytes(g.width * g.height)
        if encoding and not self.memory.reserve(encoding):
            self._ashore.append(command)
            return
        try:
            self._flights[g.id] = self._board(command)
        except Exception as error:  # whatever it is, it belongs to this one request
            command.outcome.error(self._explain(g, error))
        self.memory.release(encoding)

    def _board(self, command: _Admit) -> Flight:
        g = command.generation
        embeddings = [g.embedding] if g.negative is None else [g.embedding, g.negative]
        adapter = None if g.adapter is None else (g.adapter.name, g.adapter_scale)
        shape = Shape(g.height, g.width, tuple(pad_length(len(embedding)) for embedding in embeddings), adapter)
        self.memory.check(shape)
        if g.reference is not None:
            self.memory.check_input(g.width, g.height)
        extension = None if g.adapter is None else self.transformer.extend(g.adapter, g.adapter_scale)
        captions = [self.transformer.caption(embedding, extension) for embedding in embeddings]
        schedule = self.transformer.schedule(g.steps, (g.height // 16) * (g.width // 16), extension)
        entry = Entry(g.id, shape, g.steps_taken, self.clock(), g.deadline, g.alone)
        begun = begin(
            g.reference,
            lambda: self.transformer.noise(g.seed, g.height, g.width),
            lambda reference: self.decoder.encoder.begin(reference, g.seed, schedule.sigmas[g.skipped]),
            self.memory.free,
        )
        flight = Flight(
            g,
            entry,
            captions,
            schedule,
            begun.latents,
            command.outcome,
            command.on_step,
            g.skipped,
            begun.kept,
            extension,
        )
        flight.take_only_needed()
        return flight

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

    def _begin(self, turn: Turn) -> _Step | None:
        """None when it has to wait until the paused step gives its memory back; too large a batch is halved."""
        shape = turn.batch[0].shape
        while len(turn.batch) > 1 and not self.memory.fits(self.memory.step_bytes(shape, len(turn.batch))):
            turn.batch = turn.batch[: len(turn.batch) // 2]
        needed = self.memory.step_bytes(shape, len(turn.batch))
        if not self.memory.reserve(needed):
            return None
        flights = [self._flights[entry.id] for entry in turn.batch]
        for flight in flights:
            if flight.started_at == 0:
                flight.started_at = time.time()
                flight.on_step(0, None)
        return _Step(turn, flights, velocities(self.transformer, flights, turn.parts), needed)

    def _leave(self, step: _Step) -> None:
        self.memory.release(step.reserved)
        if step is self._paused:
            self._paused = None

    def _advance(self, step: _Step) -> None:
        self._beat = started = self.clock()
        turn, failure = step.turn, None
        try:
            moves = next(step.work)
            self._synchronize()
        except Exception as error:
            failure = error
        step.seconds += self.clock() - started
        turn.done += 1
        if failure is not None:
            turn.done = turn.parts
            self._leave(step)
            if isinstance(failure, torch.OutOfMemoryError) and len(step.flights) > 1:
                self.memory.did_not_fit(turn.batch[0].shape, len(step.flights))
            self._recover(step.flights, failure, self._step_again)
        elif moves is not None:
            self._leave(step)
            self._finish(step, moves)

    def _step_again(self, flights: list[Flight]) -> None:
        turn = Turn([flight.entry for flight in flights if flight.entry.id in self._flights])
        step = self._begin(turn) if turn.batch else None
        if step is not None:  # else it waits for the memory of the paused step, and is chosen again
            self._advance(step)

    def _finish(self, step: _Step, moves: list[Tensor]) -> None:
        shape = step.flights[0].entry.shape
        self.times.observe_step(shape.tokens, shape.rows * len(step.flights), step.seconds)
        self.recorder.observe("zimage_step_duration_seconds", step.seconds, self.model)
        self.recorder.observe("zimage_batch_size", len(step.flights), "step")
        arrived = list[Flight]()
        for flight, velocity in zip(step.flights, moves, strict=True):
            if flight.entry.id not in self._flights:
                continue  # it left between two parts
            try:
                self._move(flight, velocity, step)
            except Exception as error:
                self._recover([flight], error, self._step_again)
                continue
            if flight.arrived:
                flight.denoised_at = time.time()
                arrived.append(flight)
        self._landing += [arrived[at : at + self.decode_batch] for at in range(0, len(arrived), self.decode_batch)]

    def _move(self, flight: Flight, velocity: Tensor, step: _Step) -> None:
        expected = flight.move(velocity, step.seconds, len(step.flights))
        preview = None
        if not flight.arrived and flight.taken in flight.generation.preview_steps:
            preview = self.decoder.preview(flight.picture(expected))
        flight.on_step(flight.taken, preview)

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
        flights = [flight for flight in flights if flight.entry.id in self._flights]
        if not flights:
            return
        self._beat = started = self.clock()
        began, failure = time.time(), None
        try:
            pictures = self.decoder.decode([flight.picture(flight.latents) for flight in flights])
        except Exception as error:
            failure = error
        if failure is not None:
            self._recover(flights, failure, self._decode)
            return
        seconds = self.clock() - started
        self.times.observe_decode(flights[0].entry.shape.pixels, seconds / len(flights))
        self.recorder.observe("zimage_batch_size", len(flights), "decode")
        decoding = Span(began, time.time())
        for flight, pixels in zip(flights, pictures, strict=True):
            del self._flights[flight.entry.id]
            spent = flight.denoise_s, seconds, flight.executions
            flight.outcome.result(Drawn(pixels, flight.started_at, *spent, flight.denoised_at, decoding))

    def _synchronize(self) -> None:
        if self.transformer.device.type == "cuda":
            torch.cuda.current_stream().synchronize()

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
        log.error("the device is lost", exc_info=error)
        for flight in list(self._flights.values()):
            self._fail(flight, DeviceLost("the device of this replica is lost"))
        for command in self._ashore:
            command.outcome.error(DeviceLost("the device of this replica is lost"))
        self._ashore = []
