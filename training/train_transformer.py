"""Transformer and text encoder, trained together by flow matching on cached latents."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Model

from training.batches import Batch, BatchSampler
from training.config import Canvas, TransformerConfig
from training.devices import autocast
from training.forward import (
    BatchedTransformer,
    BlockWeights,
    Rope,
    image_ropes,
    text_rope,
    text_states,
    transformer_block,
)
from training.muon import Muon
from training.progress import Clock, TimedLoop

_COMPILING_STEPS = 6
_RECENT_STEPS = 100


@dataclass(frozen=True, slots=True)
class TransformerResult:
    """`loss` is the mean over the last native batches."""

    steps: int
    loss: float


def train_transformer(
    predictor: Predictor, sampler: BatchSampler, config: TransformerConfig, clock: Clock, end: float
) -> TransformerResult:
    optimizers = _Optimizers(predictor, config)
    recent: deque[Tensor] = deque(maxlen=_RECENT_STEPS)
    loop = TimedLoop(clock, end, max_steps=config.max_steps, compiling_steps=_COMPILING_STEPS)
    for step in loop:
        batch = sampler.draw(native=step.number < config.native_steps)
        loss = ((predictor(batch) - batch.velocity) ** 2).mean()
        torch.autograd.backward(loss)
        optimizers.step(_rate(step.done, config))
        if batch.native:
            recent.append(loss.detach())
        if step.report:
            clock.log(f"transformer step {step.number}, {loop.rate:.1f}/s, {step.done:.0%}, loss {_mean(recent):.4f}")
    return TransformerResult(loop.steps, _mean(recent))


class Predictor:
    """Velocities for a batch: native ones run through graphs compiled for their shape, others through dynamic ones."""

    def __init__(self, transformer: ZImageTransformer2DModel, text_encoder: Qwen3Model, compiled: bool) -> None:
        self.transformer = transformer
        self.text_encoder = text_encoder
        self._device = transformer.device
        native, image, caption, text = _native_block, _image_block, _caption_block, text_states
        if compiled:
            native, text = torch.compile(native, dynamic=False), torch.compile(text, dynamic=False)
            image, caption = torch.compile(image, dynamic=True), torch.compile(caption, dynamic=True)
        self._native = BatchedTransformer(transformer, native, native)
        self._any_size = BatchedTransformer(transformer, image, caption)
        self._native_text = text
        self._image_ropes: dict[tuple[Canvas, int], tuple[Rope, Rope]] = {}
        self._text_ropes: dict[int, Rope] = {}

    def __call__(self, batch: Batch) -> Tensor:
        forward = self._native if batch.native else self._any_size
        text = self._native_text if batch.native else text_states
        ropes, text_rotation = self._ropes(batch.canvas, batch.ids.shape[1])
        with autocast(self._device):
            states = text(self.text_encoder, batch.ids, text_rotation)
            return forward(batch.noisy, 1 - batch.sigma, states, batch.lengths, ropes).float()

    def _ropes(self, canvas: Canvas, tokens: int) -> tuple[tuple[Rope, Rope], Rope]:
        if tokens not in self._text_ropes:
            self._text_ropes[tokens] = text_rope(self.text_encoder, tokens, self._device)
        if (canvas, tokens) not in self._image_ropes:
            rows, columns = canvas.height // 16, canvas.width // 16
            self._image_ropes[canvas, tokens] = image_ropes(self.transformer, rows, columns, tokens, self._device)
        return self._image_ropes[canvas, tokens], self._text_ropes[tokens]


class _Optimizers:
    """Muon for the matrices inside blocks, AdamW for embeddings, norms and the ends of the networks."""

    def __init__(self, predictor: Predictor, config: TransformerConfig) -> None:
        matrices = list(_block_matrices(predictor))
        skipped = {*map(id, matrices), *map(id, _unused(predictor.text_encoder))}
        parameters = [*predictor.transformer.parameters(), *predictor.text_encoder.parameters()]
        self._others = [parameter for parameter in parameters if id(parameter) not in skipped]
        self._config = config
        self._muon = Muon(matrices, 0.0, config.muon_momentum, config.muon_weight_decay)
        self._adamw = torch.optim.AdamW(
            self._others,
            betas=config.adamw_betas,
            weight_decay=config.adamw_weight_decay,
            fused=self._others[0].is_cuda,
        )

    def step(self, rate: float) -> None:
        """`rate` scales both learning rates."""
        self._muon.learning_rate = self._config.muon_learning_rate * rate
        for group in self._adamw.param_groups:
            group["lr"] = self._config.adamw_learning_rate * rate
        nn.utils.clip_grad_norm_(self._others, self._config.clip_norm)
        self._muon.step()
        self._adamw.step()
        self._muon.zero_grad()
        self._adamw.zero_grad(set_to_none=True)


def _block_matrices(predictor: Predictor) -> Iterator[nn.Parameter]:
    transformer, text_encoder = predictor.transformer, predictor.text_encoder
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers, *text_encoder.layers[:-1]]
    return (parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2)


def _unused(text_encoder: Qwen3Model) -> Iterator[nn.Parameter]:
    """Behind hidden_states[-2]."""
    yield from text_encoder.layers[-1].parameters()
    yield from text_encoder.norm.parameters()


def _rate(done: float, config: TransformerConfig) -> float:
    """Warm-up, flat, linear to zero."""
    warmup = max(0.02, min(1.0, done / config.warmup))
    return warmup * min(1.0, (1 - done) / (1 - config.decay_from))


def _mean(losses: deque[Tensor]) -> float:
    return torch.stack(list(losses)).mean().item() if losses else float("nan")


# Three functions and not one: the compiler keeps its graphs by function, and static and dynamic ones must not mix.
def _native_block(x: Tensor, rope: Rope, condition: Tensor | None, weights: BlockWeights) -> Tensor:
    return transformer_block(x, rope, condition, weights)


def _image_block(x: Tensor, rope: Rope, condition: Tensor | None, weights: BlockWeights) -> Tensor:
    return transformer_block(x, rope, condition, weights)


def _caption_block(x: Tensor, rope: Rope, condition: Tensor | None, weights: BlockWeights) -> Tensor:
    return transformer_block(x, rope, condition, weights)
