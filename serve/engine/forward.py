"""One step of a batch as the loop takes it: in parts, and with guidance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from serve.engine.controlnet import Controlled, ControlNet
from serve.engine.flight import Flight
from serve.engine.lora import Adapter, Extension
from serve.engine.zimage import Caption, Row, Schedule


class Transformer(Protocol):
    """The model as the loop uses it (`zimage.py`)."""

    device: torch.device
    embedding_size: int

    def noise(self, seed: int, height: int, width: int) -> Tensor: ...

    def extend(self, adapter: Adapter, scale: float) -> Extension: ...

    def caption(self, embeddings: Tensor, extension: Extension | None = None) -> Caption: ...

    def schedule(self, steps: int, image_tokens: int, extension: Extension | None = None) -> Schedule: ...

    def control(
        self, net: ControlNet, latents: Tensor, scale: float, steps: int, extension: Extension | None = None
    ) -> Controlled: ...

    def segments(self, rows: list[Row], parts: int) -> Iterator[Tensor]:
        """One forward over rows of one shape in exactly `parts` of about equal time.

        Yields after each, last of all the velocity [B, N, 4 * C], the same numbers for any `parts`. Between two parts
        other forwards may run, and the rest may be left undone.
        """
        ...


def velocities(transformer: Transformer, flights: list[Flight], parts: int) -> Iterator[list[Tensor] | None]:
    """Yields None after each of `parts` but the last, and then dx/dσ [N, 4 * C] for each flight.

    It is one forward where all captions of a request have the same length, else one for each of them.
    """
    columns = [list(column) for column in zip(*(flight.rows() for flight in flights), strict=True)]
    together = len({column[0].caption.length for column in columns}) == 1
    batches = [[row for column in columns for row in column]] if together else columns
    progress = zip(*(transformer.segments(rows, parts) for rows in batches), strict=True)
    for done, outputs in enumerate(progress, 1):  # noqa: B007 - to the very end: only a forward that is through is recorded
        if done < parts:
            yield None
    yield _guided(flights, outputs[0].chunk(len(columns)) if together else outputs)


def _guided(flights: list[Flight], per_caption: Sequence[Tensor]) -> list[Tensor]:
    """Guided ones combine two rows as diffusers does."""
    if len(per_caption) == 1:
        return list(per_caption[0])
    positive, negative = per_caption
    return [flight.guidance.combine(pos, neg) for flight, pos, neg in zip(flights, positive, negative, strict=True)]
