"""Training batches for flow matching, drawn at random from the caches without leaving the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from training.config import Bucket, Canvas, Config
from training.data.chat import PAD_TOKEN, PromptEncoder
from training.latents import CachedCaptions, LatentCache


@dataclass(frozen=True, slots=True)
class Batch:
    """Noisy patches [B, N, 64] at noise levels `sigma` [B], the velocity to predict, and captions [B, S].

    `native` batches all have one shape: the first canvas and the shortest captions.
    """

    canvas: Canvas
    native: bool
    noisy: Tensor
    sigma: Tensor
    velocity: Tensor
    ids: Tensor
    lengths: Tensor


class BatchSampler:
    def __init__(
        self,
        caches: Sequence[LatentCache],
        prompts: PromptEncoder,
        config: Config,
    ) -> None:
        self._caches = caches
        self._buckets = config.buckets
        self._config = config.transformer
        self._rng = Random(config.seed)
        self._device = caches[0].patches.device
        self._pad = prompts.token(PAD_TOKEN)
        empty = prompts.encode("")
        self._empty = torch.full((max(bucket.tokens for bucket in config.buckets),), self._pad, device=self._device)
        self._empty[: len(empty)] = torch.tensor(empty, device=self._device)
        self._empty_length = len(empty)

    @torch.no_grad()
    def draw(self, native: bool) -> Batch:
        """A native batch, or one of any canvas and caption length in their shares."""
        cache, bucket = (0, 0) if native else (self._choose(self._canvases), self._choose(self._buckets))
        return self._batch(self._caches[cache], bucket, native=cache == bucket == 0)

    @property
    def _canvases(self) -> list[Canvas]:
        return [cache.canvas for cache in self._caches]

    def _choose(self, options: Sequence[Canvas] | Sequence[Bucket]) -> int:
        return self._rng.choices(range(len(options)), [option.share for option in options])[0]

    def _batch(self, cache: LatentCache, bucket: int, native: bool) -> Batch:
        size = max(2, round(self._config.batch * cache.canvas.batch * self._buckets[bucket].batch))
        rows = torch.randint(len(cache.patches), (size,), device=self._device)
        ids, lengths = self._captions(cache.captions[bucket], rows)
        clean = cache.patches[rows].float()
        noise = torch.randn_like(clean)
        sigma = stratified_sigmas(size, self._config.shift, self._device)
        level = sigma[:, None, None]
        return Batch(cache.canvas, native, (1 - level) * clean + level * noise, sigma, clean - noise, ids, lengths)

    def _captions(self, captions: CachedCaptions, rows: Tensor) -> tuple[Tensor, Tensor]:
        variant = torch.randint(captions.ids.shape[1], rows.shape, device=self._device)
        ids, lengths = captions.ids[rows, variant], captions.lengths[rows, variant]
        real = torch.arange(ids.shape[1], device=self._device)[None] < lengths[:, None]
        ids = torch.where(real, ids, self._pad)
        dropped = torch.rand(len(rows), device=self._device) < self._config.empty_captions
        ids = torch.where(dropped[:, None], self._empty[None, : ids.shape[1]], ids)
        return ids, torch.where(dropped, self._empty_length, lengths)


def stratified_sigmas(count: int, shift: float, device: torch.device) -> Tensor:
    """Noise levels spread evenly over 0..1 in random order, then shifted as the scheduler shifts them."""
    even = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    even = even[torch.randperm(count, device=device)]
    return shift * even / (1 + (shift - 1) * even)
