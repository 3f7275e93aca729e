"""Runs every popular shape once before a replica is ready: no first picture is slow, and all times are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import structlog
import torch

from serve.engine.decode import Decoder
from serve.engine.memory import Memory
from serve.engine.schedule import Shape
from serve.engine.zimage import SEQUENCE_MULTIPLE, Row, ZImageTransformer, unpatchify
from serve.errors import ConfigError
from serve.step_times import StepTimes

log = structlog.get_logger()

BATCHED_UP_TO_PX = 512  # above it a single picture fills the device
ROUNDS = 3  # after the one in which memory is measured; on a GPU the next records kernels, and then all is fast
CAPTION_TOKENS, MAX_CAPTION_TOKENS = 32, 512


def warm_up(
    transformer: ZImageTransformer,
    decoder: Decoder,
    memory: Memory,
    shapes_px: Sequence[tuple[int, int]],
    max_batch: int,
    report: Callable[[float], None],
) -> StepTimes:
    """Measures steps and decoding for pictures of these widths and heights, in seconds and in bytes, smallest first.

    `report` gets the fraction done. Raises ConfigError when not even the first fits into the device's memory.
    """
    times = StepTimes()
    if transformer.graphs is not None:
        _record_captions(transformer)
    shapes = list(_shapes(shapes_px, max_batch))
    for done, (width, height, rows) in enumerate(shapes):
        measure = partial(_measure, transformer, decoder, memory, times, width, height, rows)
        fits = _fits(memory, Shape(height, width, (CAPTION_TOKENS,)), rows, measure)
        if not fits and done == 0:
            raise ConfigError(
                f"a picture of {width}x{height} does not fit into the GPU's memory beside the weights",
                hint="raise vram_limit, use a larger GPU, or add a smaller size to warmup_sizes_px",
            )
        report((done + 1) / len(shapes))
    return times


def _fits(memory: Memory, shape: Shape, rows: int, measure: Callable[[], bool]) -> bool:
    """What runs out of memory beside what is recorded is measured again without that."""
    for _ in range(2):
        try:
            fits = measure()
            break
        except torch.OutOfMemoryError as error:
            error.__traceback__ = None
            memory.free()
    else:
        fits = False
        if rows == 1:
            memory.refuse(shape)
        else:
            memory.did_not_fit(shape, rows)
    if not fits:
        log.warning("more than the GPU's memory", width=shape.width, height=shape.height, rows=rows)
    return fits


def _record_captions(transformer: ZImageTransformer) -> None:
    """Of every length, as the second run of each is recorded and takes longer than a step."""
    for length in range(CAPTION_TOKENS, MAX_CAPTION_TOKENS + 1, SEQUENCE_MULTIPLE):
        for _ in range(2):
            transformer.caption(torch.zeros(length, transformer.embedding_size))


def _shapes(shapes_px: Sequence[tuple[int, int]], max_batch: int) -> Iterator[tuple[int, int, int]]:
    for width, height in shapes_px:
        batched = width * height <= BATCHED_UP_TO_PX**2
        largest = max(2, max_batch) if batched else 2  # two rows are one guided picture
        yield from (
            (width, height, rows) for rows in range(1, largest + 1) if rows & (rows - 1) == 0 or rows == largest
        )


@torch.inference_mode()
def _measure(
    transformer: ZImageTransformer,
    decoder: Decoder,
    memory: Memory,
    times: StepTimes,
    width: int,
    height: int,
    rows: int,
) -> bool:
    """False when it does not fit."""
    caption = transformer.caption(torch.zeros(CAPTION_TOKENS, transformer.embedding_size))
    shape = Shape(height, width, (caption.length,))
    schedule = transformer.schedule(1, (width // 16) * (height // 16))
    batch = [Row(transformer.noise(seed, height, width), caption, schedule, 0, height, width) for seed in range(rows)]
    if not memory.measure_step(shape, rows, lambda: transformer.velocity(batch)):
        return False
    step = min(_seconds(transformer, lambda: transformer.velocity(batch)) for _ in range(ROUNDS))
    times.observe_step(shape.tokens, rows, step)
    if rows == 1:
        latents = unpatchify(batch[0].latents, height, width)
        if not memory.measure_decode(width * height, lambda: decoder.decode([latents])):
            return False
        decode = min(_seconds(transformer, lambda: decoder.decode([latents])) for _ in range(ROUNDS))
        times.observe_decode(width * height, decode)
        blank = np.zeros((height, width, 3), np.uint8)
        memory.measure_encode(width * height, lambda: decoder.encoder.encode(blank))
    return True


def _seconds(transformer: ZImageTransformer, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if transformer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
