"""One picture in flight: what was asked for, how far it is, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from serve.engine.controlnet import Controlled, ControlNet
from serve.engine.guidance import Guidance
from serve.engine.lora import Adapter, Extension
from serve.engine.pixels import Pixels
from serve.engine.reference import Kept, Reference
from serve.engine.schedule import Entry, Shape
from serve.engine.zimage import Caption, Row, Schedule, pad_length, unpatchify
from serve.messages import Span

OnStep = Callable[[int, Pixels | None], None]


@dataclass(frozen=True, slots=True)
class Control:
    """As a request has it: a ControlNet, the picture for it, of the very size that is drawn, and its scale.

    One that knows masks may be given another picture with what of it is to be drawn anew.
    """

    net: ControlNet
    picture: Reference
    scale: float
    masked: Reference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One picture to draw. `deadline` is in seconds of the engine's clock; embeddings are [L, C].

    With a `reference` the first `skipped` of its steps are left out. `preview_steps` counts those that are taken.
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
    reference: Reference | None = None
    skipped: int = 0
    adapter: Adapter | None = None
    adapter_scale: float = 1.0
    control: Control | None = None
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0

    @property
    def steps_taken(self) -> int:
        return self.steps - self.skipped

    @property
    def encodes(self) -> bool:
        """Some picture, before its first step."""
        return self.reference is not None or self.control is not None

    @property
    def embeddings(self) -> list[Tensor]:
        """One for each of its rows in a step."""
        return [self.embedding] if self.negative is None else [self.embedding, self.negative]

    @property
    def shape(self) -> Shape:
        """Pictures of one shape may share a step."""
        adapter = None if self.adapter is None else (self.adapter.name, self.adapter_scale)
        controlnet = None if self.control is None else self.control.net.name
        captions = tuple(pad_length(len(rows)) for rows in self.embeddings)
        return Shape(self.height, self.width, captions, adapter, controlnet)


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
    """`latents` [N, 4 * C] are those before step `step` of the schedule; `retried` is the one tried again, alone."""

    generation: Generation
    entry: Entry
    captions: list[Caption]
    schedule: Schedule
    latents: Tensor
    outcome: Outcome
    on_step: OnStep
    step: int
    kept: Kept | None = None
    extension: Extension | None = None
    control: Controlled | None = None
    retried: int = -1
    started_at: float = 0.0
    denoise_s: float = 0.0
    executions: float = 0.0

    @property
    def guidance(self) -> Guidance:
        g = self.generation
        return Guidance(g.guidance, g.cfg_normalization, g.cfg_truncation)

    @property
    def arrived(self) -> bool:
        return self.step == self.generation.steps

    @property
    def taken(self) -> int:
        """Steps that it has taken itself."""
        return self.step - self.generation.skipped

    def rows(self) -> list[Row]:
        """One for each caption that this step takes: `entry.shape` says how many."""
        g, captions = self.generation, self.captions[: self.entry.shape.rows]
        here = (self.schedule, self.step, g.height, g.width, self.extension, self.control)
        return [Row(self.latents, caption, *here) for caption in captions]

    def move(self, velocity: Tensor) -> Tensor:
        """Takes the step along `velocity` [N, 4 * C]; returns what it lets expect of the picture."""
        sigma, following = self.schedule.sigmas[self.step], self.schedule.sigmas[self.step + 1]
        moved = self.latents + (following - sigma) * velocity
        expected = moved - following * velocity
        self.latents = moved if self.kept is None else self.kept.blend(moved, following)
        self.step += 1
        self.entry.steps_left -= 1
        self.take_only_needed()
        return expected if self.kept is None else self.kept.blend(expected, 0.0)

    def took(self, seconds: float, members: int) -> None:
        """The device's time for a step, one of so many members."""
        self.denoise_s += seconds
        self.executions += 1 / (members * self.generation.steps_taken)

    def take_only_needed(self) -> None:
        """From the step on at which guidance is cut off, the negative prompt takes no part."""
        if not self.arrived and not self.guidance.at(self.schedule.sigmas[self.step]):
            self.entry.shape = self.entry.shape.unguided()

    def picture(self, tokens: Tensor) -> Tensor:
        """[N, 4 * C] -> latents [C, h, w]."""
        return unpatchify(tokens, self.generation.height, self.generation.width)
