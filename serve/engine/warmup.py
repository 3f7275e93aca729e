"""Runs every popular shape once before a replica is ready: no first picture is slow, and all times are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from serve.engine.decode import Decoder
from serve.engine.memory import Memory
from serve.engine.schedule import Shape
from serve.engine.zimage import Row, ZImageTransformer, unpatchify
from serve.errors import ConfigError
from serve.step_times import StepTimes

BATCHED_UP_TO_PX = 512  # above it a single picture fills the device
ROUNDS = 1  # after the one in which memory is measured, which also loads what is loaded lazily
CAPTION_TOKENS = 32


def warm_up(
    transformer: ZImageTransformer,
    decoder: Decoder,
    memory: Memory,
    sides_px: Sequence[int],
    max_batch: int,
    report: Callable[[float], None],
) -> StepTimes:
    """Measures steps and decoding for square pictures, in seconds and in bytes; `report` gets the fraction done.

    Raises ConfigError when not even the smallest of them fits into the device's memory.
    """
    times = StepTimes()
    shapes = sorted(_shapes(sides_px, max_batch))
    for done, (side, rows) in enumerate(shapes):
        fits = _measure(transformer, decoder, memory, times, side, rows)
        if not fits and done == 0:
            raise ConfigError(
                f"a picture of {side}x{side} does not fit into the GPU's memory beside the weights",
                hint="raise vram_limit, use a larger GPU, or add a smaller size to warmup_sizes_px",
            )
        report((done + 1) / len(shapes))
    return times


def _shapes(sides_px: Sequence[int], max_batch: int) -> Iterator[tuple[int, int]]:
    for side in sides_px:
        largest = max(2, max_batch) if side <= BATCHED_UP_TO_PX else 2  # two rows are one guided picture
        yield from ((side, rows) for rows in range(1, largest + 1) if rows & (rows - 1) == 0 or rows == largest)


@torch.inference_mode()
def _measure(
    transformer: ZImageTransformer, decoder: Decoder, memory: Memory, times: StepTimes, side: int, rows: int
) -> bool:
    """False when it does not fit."""
    caption = transformer.caption(torch.zeros(CAPTION_TOKENS, transformer.embedding_size))
    shape = Shape(side, side, (caption.length,))
    schedule = transformer.schedule(1, (side // 16) ** 2)
    batch = [Row(transformer.noise(seed, side, side), caption, schedule, 0, side, side) for seed in range(rows)]
    if not memory.measure_step(shape, rows, lambda: transformer.velocity(batch)):
        return False
    step = min(_seconds(transformer, lambda: transformer.velocity(batch)) for _ in range(ROUNDS))
    times.observe_step(shape.tokens, rows, step)
    if rows == 1:
        latents = unpatchify(batch[0].latents, side, side)
        if not memory.measure_decode(side * side, lambda: decoder.decode([latents])):
            return False
        decode = min(_seconds(transformer, lambda: decoder.decode([latents])) for _ in range(ROUNDS))
        times.observe_decode(side * side, decode)
    return True


def _seconds(transformer: ZImageTransformer, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if transformer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
