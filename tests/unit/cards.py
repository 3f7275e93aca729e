"""A card of so many bytes under the real engine on the CPU: its allocator runs out where a GPU's would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serve.engine.decode import Decoder
from serve.engine.memory import Vram
from serve.engine.pixels import Pixels
from serve.engine.zimage import Row, ZImageTransformer

WEIGHTS = 1_000
STEP_BYTES_PER_TOKEN = 10
DECODE_PIXELS_PER_BYTE = 10


@dataclass
class Card:
    """Its memory as `Meter` sees it. `holds` is what work holds now, `other` what another process has taken."""

    total: int
    holds: int = 0
    other: int = 0
    highest: int = 0
    freed: int = 0
    broken: bool = False
    steps: list[int] = field(default_factory=list)

    def read(self) -> Vram:
        return Vram(WEIGHTS + self.holds, WEIGHTS + self.holds, self.total)

    def peak(self, work: Callable[[], object]) -> int:
        self.highest = self.holds
        before = self.holds
        work()
        return self.highest - before

    def free(self) -> None:
        self.freed += 1

    def alive(self) -> bool:
        return not self.broken

    @contextmanager
    def hold(self, needed: int) -> Iterator[None]:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if WEIGHTS + self.other + self.holds + needed > self.total:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {needed} bytes")
        self.holds += needed
        self.highest = max(self.highest, self.holds)
        try:
            yield
        finally:
            self.holds -= needed


class TransformerOn:
    """The real one, whose activations lie on the card; notes how many rows took each step."""

    def __init__(self, transformer: ZImageTransformer, card: Card) -> None:
        self._transformer, self._card = transformer, card

    def __getattr__(self, name: str) -> object:
        return getattr(self._transformer, name)

    def velocity(self, rows: list[Row]) -> Tensor:
        *_, velocity = self.segments(rows, 1)
        return velocity

    def segments(self, rows: list[Row], parts: int) -> Iterator[Tensor]:
        first = rows[0]
        tokens = first.height * first.width // 256 + first.caption.length
        with self._card.hold(STEP_BYTES_PER_TOKEN * tokens * len(rows)):
            self._card.steps.append(len(rows))
            yield from self._transformer.segments(rows, parts)


class DecoderOn:
    def __init__(self, decoder: Decoder, card: Card) -> None:
        self._decoder, self._card = decoder, card
        self.encoder = decoder.encoder

    def launch_preview(self, latents: Tensor) -> Tensor:
        return self._decoder.launch_preview(latents)

    def decode(self, latents: list[Tensor]) -> list[Pixels]:
        return [pixels.numpy() for pixels in self.launch(latents)]

    def launch(self, latents: list[Tensor]) -> Tensor:
        with self._card.hold(64 * latents[0][0].numel() * len(latents) // DECODE_PIXELS_PER_BYTE):
            return self._decoder.launch(latents)
