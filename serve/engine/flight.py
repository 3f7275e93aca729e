"""One picture in flight: what was asked for, how far it is, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from serve.engine.decode import Pixels
from serve.engine.schedule import Entry
from serve.engine.zimage import Caption, Row, Schedule, unpatchify
from serve.messages import Span

OnStep = Callable[[int, Pixels | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One picture to draw. `deadline` is in seconds of the engine's clock; embeddings are [L, C].

    `origin` is what log lines about it say.
    """

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
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drawn:
    """RGB [H, W, 3]; when the first step began (Unix seconds); seconds of the work it took part in.

    `executions` is its part of them: of a step that three shared a third, of all steps together one where it was alone.
    The last step ended at `denoised_at`; `decoding` is the time of the batch that decoded it.
    """

    pixels: Pixels
    started_at: float
    denoise_s: float
    decode_s: float
    executions: float
    denoised_at: float
    decoding: Span


@dataclass(frozen=True, slots=True)
class Outcome:
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


@dataclass(slots=True)
class Flight:
    """`latents` [N, 4 * C] are those before step `step`; `retried` is the step that was tried again, alone."""

    generation: Generation
    entry: Entry
    captions: list[Caption]
    schedule: Schedule
    latents: Tensor
    outcome: Outcome
    on_step: OnStep
    step: int = 0
    retried: int = -1
    started_at: float = 0.0
    denoise_s: float = 0.0
    executions: float = 0.0

    @property
    def arrived(self) -> bool:
        return self.step == self.generation.steps

    def rows(self) -> list[Row]:
        g = self.generation
        return [Row(self.latents, caption, self.schedule, self.step, g.height, g.width) for caption in self.captions]

    def move(self, velocity: Tensor) -> None:
        """Takes the step along `velocity` [N, 4 * C]."""
        sigma, following = self.schedule.sigmas[self.step], self.schedule.sigmas[self.step + 1]
        self.latents = self.latents + (following - sigma) * velocity
        self.step += 1
        self.entry.steps_left -= 1

    def expected(self, velocity: Tensor) -> Tensor:
        """What the step along `velocity`, which was taken, lets expect of the picture [N, 4 * C]."""
        return self.latents - self.schedule.sigmas[self.step] * velocity

    def took(self, seconds: float, members: int) -> None:
        """The device's time for a step, one of so many members."""
        self.denoise_s += seconds
        self.executions += 1 / (members * self.generation.steps)

    def picture(self, tokens: Tensor) -> Tensor:
        """[N, 4 * C] -> latents [C, h, w]."""
        return unpatchify(tokens, self.generation.height, self.generation.width)
