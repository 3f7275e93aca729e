"""The step loop: one thread owns the device and the table of requests in flight; nobody else launches work on it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from torch import Tensor

from serve.engine.decode import Decoder, Pixels
from serve.engine.schedule import Entry, Policy, Shape
from serve.engine.zimage import Caption, Row, Schedule, ZImageTransformer, pad_length, unpatchify
from serve.errors import DeadlineExceeded, ZImageError
from serve.step_times import StepTimes

log = structlog.get_logger()

OnStep = Callable[[int, Pixels | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One picture to denoise. `deadline` is in seconds of the engine's clock; embeddings are [L, C]."""

    id: str
    height: int
    width: int
    steps: int
    seed: int
    embedding: Tensor
    negative: Tensor | None
    guidance: float
    deadline: float
    hard_deadline: bool
    alone: bool
    preview_steps: frozenset[int]


@dataclass(frozen=True, slots=True)
class Denoised:
    """Final latents [C, h, w] fp32; when the first step began (Unix seconds); seconds of the steps it took part in."""

    latents: Tensor
    started_at: float
    denoise_s: float


@dataclass(slots=True)
class _Flight:
    generation: Generation
    entry: Entry
    captions: list[Caption]
    schedule: Schedule
    latents: Tensor
    outcome: _Outcome
    on_step: OnStep
    step: int = 0
    started_at: float = 0.0
    denoise_s: float = 0.0

    def rows(self) -> list[Row]:
        g = self.generation
        return [Row(self.latents, caption, self.schedule, self.step, g.height, g.width) for caption in self.captions]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A future of the event loop that the engine's thread may settle."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    def result(self, value: object) -> None:
        self._settle(lambda: self.future.set_result(value))

    def error(self, error: BaseException) -> None:
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, settle: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


@dataclass(frozen=True, slots=True)
class _Admit:
    generation: Generation
    on_step: OnStep
    outcome: _Outcome


@dataclass(frozen=True, slots=True)
class _Cancel:
    id: str


@dataclass(frozen=True, slots=True)
class _Decode:
    latents: list[Tensor]
    outcome: _Outcome


class _Stop:
    pass


_Command = _Admit | _Cancel | _Decode | _Stop


@dataclass(slots=True)
class Engine:
    transformer: ZImageTransformer
    decoder: Decoder
    policy: Policy
    times: StepTimes
    clock: Callable[[], float] = time.monotonic
    _inbox: queue.SimpleQueue[_Command] = field(default_factory=queue.SimpleQueue)
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _stopping: bool = False
    _beat: float = 0.0

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

    async def denoise(self, generation: Generation, on_step: OnStep) -> Denoised:
        """Runs a generation to its last step. `on_step(step, preview)` is called in the engine's thread.

        Cancelling the caller drops the generation at the next step boundary. Raises DeadlineExceeded.
        """
        outcome = self._outcome()
        self._inbox.put(_Admit(generation, on_step, outcome))
        try:
            denoised: Denoised = await outcome.future
        except asyncio.CancelledError:
            self._inbox.put(_Cancel(generation.id))
            raise
        return denoised

    async def decode(self, latents: list[Tensor]) -> list[Pixels]:
        """Latents of one shape to pixels, at the next step boundary."""
        outcome = self._outcome()
        self._inbox.put(_Decode(latents, outcome))
        pixels: list[Pixels] = await outcome.future
        return pixels

    @staticmethod
    def _outcome() -> _Outcome:
        loop = asyncio.get_running_loop()
        return _Outcome(loop, loop.create_future())

    def _run(self) -> None:
        while not self._stopping:
            self._receive()
            self._drop_expired()
            batch = self.policy.next([flight.entry for flight in self._flights.values()], self.clock())
            self._advance([self._flights[entry.id] for entry in batch])

    def _receive(self) -> None:
        """Everything that has arrived; sleeps only when there is nothing to step."""
        while not self._flights or not self._inbox.empty():
            command = self._inbox.get()
            self._beat = self.clock()
            if isinstance(command, _Stop):
                self._stopping = True
                return
            if isinstance(command, _Cancel):
                self._flights.pop(command.id, None)
            elif isinstance(command, _Decode):
                self._decode(command)
            else:
                self._admit(command)

    def _admit(self, command: _Admit) -> None:
        try:
            self._flights[command.generation.id] = self._board(command)
        except Exception as error:  # whatever it is, it belongs to this one request
            command.outcome.error(error)

    def _board(self, command: _Admit) -> _Flight:
        g = command.generation
        embeddings = [g.embedding] if g.negative is None else [g.embedding, g.negative]
        captions = [self.transformer.caption(embedding) for embedding in embeddings]
        shape = Shape(g.height, g.width, tuple(pad_length(len(embedding)) for embedding in embeddings))
        schedule = self.transformer.schedule(g.steps, (g.height // 16) * (g.width // 16))
        entry = Entry(g.id, shape, g.steps, self.clock(), g.deadline, g.alone)
        latents = self.transformer.noise(g.seed, g.height, g.width)
        return _Flight(g, entry, captions, schedule, latents, command.outcome, command.on_step)

    def _drop_expired(self) -> None:
        now = self.clock()
        for flight in list(self._flights.values()):
            if flight.generation.hard_deadline and now > flight.generation.deadline:
                del self._flights[flight.entry.id]
                done = f"{flight.step} of {flight.generation.steps} steps were done"
                flight.outcome.error(DeadlineExceeded(f"the deadline passed when {done}"))

    def _advance(self, batch: list[_Flight]) -> None:
        """One step for every member. When a batch fails, its members are tried alone: a bad one fails only itself."""
        if not batch:
            return
        self._beat = started = self.clock()
        for flight in batch:
            if flight.step == 0:
                flight.started_at = time.time()
                flight.on_step(0, None)
        try:
            velocities = self._velocities(batch)
        except Exception as error:
            self._retry_alone(batch, error)
            return
        shape = batch[0].entry.shape
        elapsed = self.clock() - started
        self.times.observe_step(shape.tokens, shape.rows * len(batch), elapsed)
        for flight, velocity in zip(batch, velocities, strict=True):
            self._move(flight, velocity, elapsed)

    def _retry_alone(self, batch: list[_Flight], error: Exception) -> None:
        if len(batch) > 1:
            for flight in batch:
                self._advance([flight])
            return
        task_id = batch[0].entry.id
        del self._flights[task_id]
        log.error("a step failed", task_id=task_id, exc_info=error)  # its caller is told no more than that
        batch[0].outcome.error(ZImageError("the model failed on this request"))

    def _velocities(self, batch: list[_Flight]) -> list[Tensor]:
        """dx/dσ [N, 4 * C] per flight; guided ones combine two rows as diffusers does."""
        per_caption = self._forward([flight.rows() for flight in batch])
        if self.transformer.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        if len(per_caption) == 1:
            return list(per_caption[0])
        positive, negative = per_caption
        return [
            pos + flight.generation.guidance * (pos - neg)
            for flight, pos, neg in zip(batch, positive, negative, strict=True)
        ]

    def _forward(self, rows: list[list[Row]]) -> list[Tensor]:
        """One [B, N, 4 * C] per caption of a request: in one forward where all captions have the same length."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        if len({column[0].caption.length for column in columns}) == 1:
            together = self.transformer.velocity([row for column in columns for row in column])
            return list(together.chunk(len(columns)))
        return [self.transformer.velocity(column) for column in columns]

    def _move(self, flight: _Flight, velocity: Tensor, elapsed: float) -> None:
        sigma, following = flight.schedule.sigmas[flight.step], flight.schedule.sigmas[flight.step + 1]
        flight.latents = flight.latents + (following - sigma) * velocity
        flight.step += 1
        flight.denoise_s += elapsed
        flight.entry.steps_left -= 1
        if flight.step == flight.generation.steps:
            del self._flights[flight.entry.id]
            flight.on_step(flight.step, None)
            flight.outcome.result(Denoised(self._picture(flight, flight.latents), flight.started_at, flight.denoise_s))
            return
        preview = None
        if flight.step in flight.generation.preview_steps:
            preview = self.decoder.preview(self._picture(flight, flight.latents - following * velocity))
        flight.on_step(flight.step, preview)

    @staticmethod
    def _picture(flight: _Flight, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, flight.generation.height, flight.generation.width)

    def _decode(self, command: _Decode) -> None:
        started = self.clock()
        try:
            pixels = self.decoder.decode(command.latents)
        except Exception as error:  # whatever it is, it belongs to these latents
            command.outcome.error(error)
            return
        _, height, width = command.latents[0].shape
        self.times.observe_decode(64 * height * width, (self.clock() - started) / len(command.latents))
        command.outcome.result(pixels)
