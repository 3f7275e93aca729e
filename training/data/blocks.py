"""Scenes by the thousand, laid out and captioned by worker processes while the GPU trains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.config import Bucket, Config
from training.data.captions import Captioner, Length
from training.data.chat import PromptEncoder
from training.data.layout import Floats, lay_out
from training.data.scenes import Scene, draw_scene
from training.data.vocabulary import Vocabulary

_ATTEMPTS = 12


@dataclass(frozen=True, slots=True)
class Captions:
    """Token ids [N, variants, tokens], zero behind each one's length [N, variants]."""

    ids: NDArray[np.int16]
    lengths: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Block:
    """N scenes: backgrounds [N, 14], layers [N, 5, 7] and captions per bucket."""

    backgrounds: Floats
    layers: Floats
    captions: tuple[Captions, ...]


@dataclass(frozen=True, slots=True)
class Job:
    seed: int
    scenes: int
    vocabulary: Vocabulary
    tokenizer: Path
    buckets: tuple[Bucket, ...]


def make_block(job: Job) -> Block:
    rng, objects = Random(job.seed), len(job.vocabulary)
    writer = _CaptionWriter(Captioner(job.vocabulary, rng), PromptEncoder(job.tokenizer), job.buckets)
    layouts, texts = [], []
    for _ in range(job.scenes):
        scene = draw_scene(rng, objects)
        layouts.append(lay_out(scene, rng, objects))
        texts.append(writer.write(scene))
    backgrounds, layers = (np.stack(arrays) for arrays in zip(*layouts, strict=True))
    captions = (_pad([text[index] for text in texts], bucket) for index, bucket in enumerate(job.buckets))
    return Block(backgrounds, layers, tuple(captions))


def join(blocks: Sequence[Block]) -> Block:
    return Block(
        np.concatenate([block.backgrounds for block in blocks]),
        np.concatenate([block.layers for block in blocks]),
        tuple(
            Captions(np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts]))
            for parts in zip(*(block.captions for block in blocks), strict=True)
        ),
    )


class SceneFactory:
    """Makes the scenes of every canvas, the native one first."""

    def __init__(self, vocabulary: Vocabulary, tokenizer: Path, config: Config) -> None:
        self._executor = _executor(config.workers)
        seed = config.seed * 1_000_003 + 17
        self._blocks: list[list[Future[Block]]] = []
        for canvas in config.canvases:
            sizes = _split(canvas.scenes, config.scenes_per_job)
            jobs = [
                Job(seed + number, size, vocabulary, tokenizer, config.buckets) for number, size in enumerate(sizes)
            ]
            seed += len(jobs)
            self._blocks.append([self._executor.submit(make_block, job) for job in jobs])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    @property
    def native_ready(self) -> int:
        """Blocks of the native canvas that can be had without waiting."""
        return sum(future.done() for future in self._blocks[0])

    def native(self, at_least: int) -> Block:
        """What is ready for the native canvas, waiting for its first `at_least` blocks."""
        futures = self._blocks[0]
        return join([future.result() for number, future in enumerate(futures) if number < at_least or future.done()])

    def take(self, canvas: int) -> Block:
        """All scenes of a canvas, once."""
        futures, self._blocks[canvas] = self._blocks[canvas], []
        return join([future.result() for future in futures])


class _CaptionWriter:
    def __init__(self, captioner: Captioner, encoder: PromptEncoder, buckets: tuple[Bucket, ...]) -> None:
        self._captioner, self._encoder = captioner, encoder
        shorter = (0, *(bucket.tokens for bucket in buckets))
        self._buckets = list(zip(Length, shorter, buckets, strict=False))

    def write(self, scene: Scene) -> list[list[list[int]]]:
        """Token ids of every variant in every bucket."""
        return [
            [self._fitting(scene, length, shorter, bucket.tokens) for _ in range(bucket.variants)]
            for length, shorter, bucket in self._buckets
        ]

    def _fitting(self, scene: Scene, length: Length, shorter: int, tokens: int) -> list[int]:
        """A caption too long for a shorter bucket that fits this one; cut when luck does not bring one."""
        ids: list[int] = []
        for _ in range(_ATTEMPTS):
            ids = self._encoder.encode(self._captioner.caption(scene, length))
            if shorter < len(ids) <= tokens:
                break
        return ids[:tokens]


def _pad(scenes: Sequence[Sequence[Sequence[int]]], bucket: Bucket) -> Captions:
    ids = np.zeros((len(scenes), bucket.variants, bucket.tokens), np.int16)
    lengths = np.zeros((len(scenes), bucket.variants), np.int16)
    for row, variants in enumerate(scenes):
        for column, tokens in enumerate(variants):
            ids[row, column, : len(tokens)] = tokens
            lengths[row, column] = len(tokens)
    return Captions(ids, lengths)


def _split(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _executor(workers: int) -> Executor:
    if workers == 0:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(min(workers, max(1, (os.cpu_count() or 1) - 2)), mp_context=get_context("spawn"))
