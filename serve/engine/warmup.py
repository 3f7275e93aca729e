"""Runs every popular shape once before a replica is ready: no first picture is slow, and all times are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from serve.engine.decode import Decoder
from serve.engine.zimage import Row, ZImageTransformer, unpatchify
from serve.step_times import StepTimes, sequence_tokens

BATCHED_UP_TO_PX = 512  # above it a single picture fills the device
ROUNDS = 3  # on a GPU the first loads kernels, the second records them, the third is as fast as all that follow
CAPTION_TOKENS = 32


def warm_up(
    transformer: ZImageTransformer,
    decoder: Decoder,
    sides_px: Sequence[int],
    max_batch: int,
    report: Callable[[float], None],
) -> StepTimes:
    """Measures steps and decoding for square pictures; `report` gets the fraction done."""
    times = StepTimes()
    shapes = list(_shapes(sides_px, max_batch))
    for done, (side, rows) in enumerate(shapes):
        _measure(transformer, decoder, times, side, rows)
        report((done + 1) / len(shapes))
    return times


def _shapes(sides_px: Sequence[int], max_batch: int) -> Iterator[tuple[int, int]]:
    for side in sides_px:
        largest = max(2, max_batch) if side <= BATCHED_UP_TO_PX else 2  # two rows are one guided picture
        yield from ((side, rows) for rows in range(1, largest + 1) if rows & (rows - 1) == 0 or rows == largest)


@torch.inference_mode()
def _measure(transformer: ZImageTransformer, decoder: Decoder, times: StepTimes, side: int, rows: int) -> None:
    caption = transformer.caption(torch.zeros(CAPTION_TOKENS, transformer.embedding_size))
    image_tokens = (side // 16) ** 2
    schedule = transformer.schedule(1, image_tokens)
    batch = [Row(transformer.noise(seed, side, side), caption, schedule, 0, side, side) for seed in range(rows)]
    step = min(_seconds(transformer, lambda: transformer.velocity(batch)) for _ in range(ROUNDS))
    times.observe_step(sequence_tokens(image_tokens, caption.length), rows, step)
    if rows == 1:
        latents = unpatchify(batch[0].latents, side, side)
        decode = min(_seconds(transformer, lambda: decoder.decode([latents])) for _ in range(ROUNDS))
        times.observe_decode(side * side, decode)


def _seconds(transformer: ZImageTransformer, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if transformer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
