"""Runs every popular shape once before a replica is ready: no first picture is slow, and all times are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from serve.engine.decode import Decoder
from serve.engine.zimage import Row, ZImageTransformer, unpatchify
from serve.step_times import StepTimes, sequence_tokens

BATCHED_UP_TO_PX = 512  # above it a single picture fills the device
ROUNDS = 2
CAPTION_TOKENS = 32


def warm_up(
    transformer: ZImageTransformer,
    decoder: Decoder,
    shapes_px: Sequence[tuple[int, int]],
    max_batch: int,
    report: Callable[[float], None],
) -> StepTimes:
    """Measures steps and decoding for pictures of these widths and heights; `report` gets the fraction done."""
    times = StepTimes()
    shapes = list(_shapes(shapes_px, max_batch))
    for done, (width, height, rows) in enumerate(shapes):
        _measure(transformer, decoder, times, width, height, rows)
        report((done + 1) / len(shapes))
    return times


def _shapes(shapes_px: Sequence[tuple[int, int]], max_batch: int) -> Iterator[tuple[int, int, int]]:
    for width, height in shapes_px:
        batched = width * height <= BATCHED_UP_TO_PX**2
        largest = max(2, max_batch) if batched else 2  # two rows are one guided picture
        yield from (
            (width, height, rows) for rows in range(1, largest + 1) if rows & (rows - 1) == 0 or rows == largest
        )


@torch.inference_mode()
def _measure(
    transformer: ZImageTransformer, decoder: Decoder, times: StepTimes, width: int, height: int, rows: int
) -> None:
    caption = transformer.caption(torch.zeros(CAPTION_TOKENS, transformer.embedding_size))
    image_tokens = (width // 16) * (height // 16)
    schedule = transformer.schedule(1, image_tokens)
    batch = [Row(transformer.noise(seed, height, width), caption, schedule, 0, height, width) for seed in range(rows)]
    step = min(_seconds(transformer, lambda: transformer.velocity(batch)) for _ in range(ROUNDS))
    times.observe_step(sequence_tokens(image_tokens, caption.length), rows, step)
    if rows == 1:
        latents = unpatchify(batch[0].latents, height, width)
        decode = min(_seconds(transformer, lambda: decoder.decode([latents])) for _ in range(ROUNDS))
        times.observe_decode(width * height, decode)


def _seconds(transformer: ZImageTransformer, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if transformer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
