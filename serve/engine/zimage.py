"""The denoising forward of Z-Image over diffusers' weights; what does not depend on the step is hoisted out.

Same mathematics as `diffusers.ZImageTransformer2DModel` (0.42) in its basic mode: latents stay in token space, the
caption is refined once per request, the adaLN outputs are a table over the schedule. Rows of one forward share one
shape, so attention never needs a mask, and a row's result does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serve.engine.graphs import Graphs, Stage, run_stages
from serve.engine.lora import Adapter, BlockTerms, Extension, extended, terms_of
from serve.engine.ops import PLAIN, Activation, Arithmetic, Norm, Ops

SEQUENCE_MULTIPLE = 32  # captions and images are padded to this with learned tokens that attend and are attended
PATCH = 2


class Block:
    """One transformer block with QKV and w1‖w3 fused. Takes over the weights of a diffusers ZImageTransformerBlock."""

    def __init__(self, block: Any, arithmetic: Arithmetic) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self._ops, linear = arithmetic.ops, arithmetic.linear
        self._heads: int = attention.heads
        self._qkv = linear(torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]))
        del attention.to_q, attention.to_k, attention.to_v  # never two copies of more than one block
        self._out = linear(attention.to_out[0].weight)
        self._norms = (Norm.of(attention.norm_q), Norm.of(attention.norm_k)) if attention.norm_q is not None else None
        self._w13 = linear(torch.cat([feed_forward.w1.weight, feed_forward.w3.weight]))
        del feed_forward.w1, feed_forward.w3
        self._w2 = linear(feed_forward.w2.weight)
        del attention.to_out, feed_forward.w2
        self.before_attention, self.after_attention = Norm.of(block.attention_norm1), Norm.of(block.attention_norm2)
        self.before_feed_forward, self.after_feed_forward = Norm.of(block.ffn_norm1), Norm.of(block.ffn_norm2)
        self.modulation: nn.Module | None = block.adaLN_modulation if block.modulation else None

    def modulate(self, time_embedding: Tensor) -> Tensor:
        """time_embedding [1, C] -> [4, D]: attention scale and gate, feed-forward scale and gate, ready to multiply."""
        assert self.modulation is not None
        scale_a, gate_a, scale_f, gate_f = self.modulation(time_embedding)[0].chunk(4)
        return torch.stack((1.0 + scale_a, gate_a.tanh(), 1.0 + scale_f, gate_f.tanh()))

    def attend(self, x: Activation, rope: Tensor, terms: BlockTerms | None = None) -> Tensor:
        """x, normed and scaled, [B, S, D]; rope [S, head_dim/2, 2]."""
        qkv = _with(terms, "qkv", self._qkv(x), x)
        query, key, value = qkv.view(*qkv.shape[:2], 3, self._heads, -1).unbind(2)
        query, key = self._ops.norm_rotate(query, key, self._norms, rope)
        mixed = self._ops.attend(query, key, value)
        return _with(terms, "out", self._out(mixed), mixed)

    def feed_forward(self, x: Activation, terms: BlockTerms | None = None) -> Tensor:
        inner = self._ops.silu_mul(_with(terms, "w13", self._w13(x), x))
        return _with(terms, "w2", self._w2(inner), inner)


def _with(terms: BlockTerms | None, matrix: str, y: Tensor, x: Activation) -> Tensor:
    return y if terms is None else terms.add(matrix, y, x)


UNMODULATED = (None, None, None, None)


class Stack:
    """Blocks in sequence. What lies between two matrix products is one operation, also across the border of blocks."""

    def __init__(self, blocks: Sequence[Block], ops: Ops) -> None:
        assert blocks
        self.blocks, self._ops = blocks, ops

    def __call__(
        self, x: Tensor, rope: Tensor, modulation: Tensor | None, terms: Sequence[BlockTerms | None] | None = None
    ) -> Tensor:
        """x [B, S, D]; rope [S, head_dim/2, 2]; modulation [B, blocks, 4, D], or None for the context refiner.

        `terms` are what an adapter adds to each block.
        """
        terms = terms or [None] * len(self.blocks)
        tables = (
            [UNMODULATED] * len(self.blocks)
            if modulation is None
            else [block.unbind(1) for block in modulation.unbind(1)]
        )
        normed = self._ops.norm(x, self.blocks[0].before_attention, tables[0][0])
        for depth, (block, (_, gate_a, scale_f, gate_f)) in enumerate(zip(self.blocks, tables, strict=True), 1):
            mixed = block.attend(normed, rope, terms[depth - 1])
            x, normed = self._ops.residual_norm(
                x, mixed, block.after_attention, gate_a, block.before_feed_forward, scale_f
            )
            fed = block.feed_forward(normed, terms[depth - 1])
            if depth < len(self.blocks):
                x, normed = self._ops.residual_norm(
                    x, fed, block.after_feed_forward, gate_f, self.blocks[depth].before_attention, tables[depth][0]
                )
        return self._ops.residual(x, fed, block.after_feed_forward, gate_f)


@dataclass(frozen=True, slots=True)
class Caption:
    """A prompt as the denoiser needs it, refined once per request.

    tokens [T, D] with T a multiple of 32.
    """

    tokens: Tensor

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one request and what depends only on them.

    sigmas: steps + 1 floats, the last one the end; modulation [steps, blocks, 4, D]; final_scale [steps, D].
    """

    sigmas: tuple[float, ...]
    modulation: Tensor
    final_scale: Tensor

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(slots=True)
class Row:
    """One row of a forward: latents [N, 64] fp32 in token space at step `step` of its schedule."""

    latents: Tensor
    caption: Caption
    schedule: Schedule
    step: int
    height: int
    width: int
    extension: Extension | None = None


def transferred(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU through page-locked memory, so that the caller need not wait for what it does before."""
    locked = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory().to(device, non_blocking=True) if locked else tensor.to(device)


def pad_length(length: int) -> int:
    return -(-length // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def patchify(latents: Tensor) -> Tensor:
    """[C, h, w] -> [h/2 * w/2, 4 * C], channels last within a patch."""
    channels, height, width = latents.shape
    patches = latents.view(channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(1, 3, 2, 4, 0).reshape(-1, PATCH * PATCH * channels)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """[h/2 * w/2, 4 * C] -> [C, h, w]; height and width are those of the picture, in pixels."""
    rows, columns = height // 16, width // 16
    patches = tokens.view(rows, columns, PATCH, PATCH, -1)
    return patches.permute(4, 0, 2, 1, 3).reshape(-1, rows * PATCH, columns * PATCH)


class ZImageTransformer:
    """Takes over the weights of a loaded `ZImageTransformer2DModel`, which must not be used afterwards.

    `layers` is how the blocks of a step compute, `caption` how the refiner of captions does. With `graphs` a shape's
    step is recorded when it comes again.
    """

    def __init__(
        self,
        model: Any,
        scheduler: Any,
        layers: Arithmetic = PLAIN,
        caption: Arithmetic = PLAIN,
        graphs: Graphs | None = None,
    ) -> None:
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.graphs = graphs
        self._scheduler_class, self._scheduler_config = type(scheduler), scheduler.config
        self._t_embedder, self._t_scale = model.t_embedder, model.t_scale
        self._x_embedder, self._x_pad = model.all_x_embedder["2-1"], model.x_pad_token
        self._caption_embedder, self._caption_pad = model.cap_embedder, model.cap_pad_token
        self._frequencies = model.rope_embedder.precompute_freqs_cis(
            model.axes_dims, model.axes_lens, theta=model.rope_theta
        )
        self._final = model.all_final_layer["2-1"]
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._noise_refiner = [Block(block, layers) for block in model.noise_refiner]
        self._layers = [Block(block, layers) for block in model.layers]
        self._ops = layers.ops
        self._refine_caption = Stack([Block(block, caption) for block in model.context_refiner], caption.ops)
        self.channels: int = model.in_channels
        self.embedding_size: int = model.cap_embedder[1].in_features
        self._schedule = lru_cache(maxsize=64)(self._make_schedule)
        self._caption_rope = lru_cache(maxsize=64)(self._make_caption_rope)
        self._ropes = lru_cache(maxsize=64)(self._make_ropes)

    def noise(self, seed: int, height: int, width: int) -> Tensor:
        """Initial latents [N, 4 * C] fp32, drawn on the CPU: the same picture on every device and batch position."""
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.channels, height // 8, width // 8)
        return transferred(patchify(torch.randn(shape, generator=generator, dtype=torch.float32)[0]), self.device)

    def extend(self, adapter: Adapter, scale: float) -> Extension:
        """What captions, schedules and rows of a request with this adapter are made with."""
        return Extension.of(adapter, scale, self.device)

    @torch.inference_mode()
    def caption(self, embeddings: Tensor, extension: Extension | None = None) -> Caption:
        """embeddings [L, C] from the text encoder -> refined caption; pads are learned tokens, not masked ones."""
        length, total = len(embeddings), pad_length(len(embeddings))
        if self.graphs is None or extension is not None:
            return self._refine(embeddings, extension)
        real = torch.arange(total) < length
        rows = [F.pad(embeddings.to(self.dtype), (0, 0, 0, total - length)), real]
        inputs = [[transferred(row, self.device)] for row in rows]
        (tokens,) = self.graphs.run(("caption", total), inputs, [partial(self._refine_padded, total)])
        return Caption(tokens[0].clone())

    def _refine(self, embeddings: Tensor, extension: Extension | None) -> Caption:
        length, total = len(embeddings), pad_length(len(embeddings))
        with extended(self._modules, extension):
            tokens = self._caption_embedder(embeddings.to(self.device, self.dtype))
        if total > length:
            tokens = torch.cat([tokens, self._caption_pad.expand(total - length, -1)])
        terms = terms_of(extension, "context_refiner", range(len(self._refine_caption.blocks)))
        return Caption(self._refine_caption(tokens[None], self._caption_rope(total), None, terms)[0])

    def _refine_padded(self, total: int, inputs: Sequence[Tensor], _: Tensor | None) -> Tensor:
        """inputs: embeddings [1, L, C] with whatever behind the real ones, and [1, L] that says which these are."""
        tokens = torch.where(inputs[1].unsqueeze(-1), self._caption_embedder(inputs[0]), self._caption_pad)
        return self._refine_caption(tokens, self._caption_rope(total), None)

    def schedule(self, steps: int, image_tokens: int, extension: Extension | None = None) -> Schedule:
        """Sigmas by the model's own scheduler; `image_tokens` matters only where its shift depends on resolution."""
        tokens = image_tokens if self._scheduler_config.use_dynamic_shifting else 0
        if extension is None or not extension.adapter.layers:
            return self._schedule(steps, tokens)
        key = (steps, tokens, extension.strength.item())
        remembered = extension.adapter.schedules
        if key not in remembered:
            remembered[key] = self._make_schedule(steps, tokens, extension)
        schedule: Schedule = remembered[key]
        return schedule

    def velocity(self, rows: list[Row]) -> Tensor:
        """One forward over rows of one shape. Returns [B, N, 4 * C] fp32, signed so that x += (σ' - σ) · v."""
        *_, velocity = self.segments(rows, 1)
        return velocity

    @torch.inference_mode()
    def segments(self, rows: list[Row], parts: int) -> Iterator[Tensor]:
        """The same forward in `parts` of about equal time.

        Yields after each part is launched, not finished; what it yields last is the velocity. Between two parts any
        other forward may run, and the rest may be left undone.
        """
        first, extension = rows[0], rows[0].extension
        inputs = [
            [row.latents for row in rows],
            [row.caption.tokens for row in rows],
            [row.schedule.modulation[row.step] for row in rows],
            [row.schedule.final_scale[row.step] for row in rows],
        ]
        if extension is not None:
            inputs.append([row.extension.strength for row in rows if row.extension])
        adapter = None if extension is None else extension.adapter
        stages = self._stages(first.caption.length, first.height // 16, first.width // 16, parts, adapter)
        key = ("step", first.height, first.width, len(rows), first.caption.length, parts, adapter)
        if self.graphs is not None:
            self.graphs.drop(_retired)
        results = run_stages(inputs, stages) if self.graphs is None else self.graphs.run(key, inputs, stages)
        for index, result in enumerate(results, 1):
            yield result if index < len(stages) else result.clone()

    def _stages(self, caption_length: int, rows: int, columns: int, parts: int, adapter: Adapter | None) -> list[Stage]:
        part = partial(self._part, self._ropes(caption_length, rows, columns), rows * columns, adapter)
        cuts = [len(self._layers) * cut // parts for cut in range(parts + 1)]
        return [partial(part, slice(start, stop)) for start, stop in pairwise(cuts)]

    def _part(
        self,
        ropes: tuple[Tensor, Tensor],
        image_tokens: int,
        adapter: Adapter | None,
        layers: slice,
        inputs: Sequence[Tensor],
        x: Tensor | None,
    ) -> Tensor:
        """Some of the layers, with what precedes the first and what follows the last."""
        latents, captions, modulation, final_scale, *strength = inputs
        extension = Extension(adapter, strength[0].flatten()) if adapter else None
        image_rope, rope = ropes
        refiners = len(self._noise_refiner)
        if x is None:
            with extended(self._modules, extension):
                x = self._x_embedder(latents.to(self.dtype))
            padding = pad_length(image_tokens) - image_tokens
            if padding:
                x = torch.cat([x, self._x_pad.expand(len(x), padding, -1)], 1)
            terms = terms_of(extension, "noise_refiner", range(refiners))
            x = Stack(self._noise_refiner, self._ops)(x, image_rope, modulation[:, :refiners], terms)
            x = torch.cat([x, captions], 1)
        if layers.start < layers.stop:
            terms = terms_of(extension, "layers", range(layers.start, layers.stop))
            x = Stack(self._layers[layers], self._ops)(x, rope, modulation[:, refiners:][:, layers], terms)
        if layers.stop < len(self._layers):
            return x
        with extended(self._modules, extension):
            output: Tensor = self._final.linear(self._final.norm_final(x[:, :image_tokens]) * final_scale.unsqueeze(1))
        return -output.float()

    @torch.inference_mode()
    def _make_schedule(self, steps: int, image_tokens: int, extension: Extension | None = None) -> Schedule:
        scheduler = self._scheduler_class.from_config(self._scheduler_config)
        scheduler.set_timesteps(
            sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=self._shift(image_tokens, scheduler.config)
        )
        modulation, final_scale = [], []
        with extended(self._modules, extension):
            for timestep in scheduler.timesteps:
                time = (1000 - timestep.expand(1)) / 1000
                embedding = self._t_embedder((time * self._t_scale).to(self.device)).to(self.dtype)
                blocks = [block.modulate(embedding) for block in (*self._noise_refiner, *self._layers)]
                modulation.append(torch.stack(blocks))
                final_scale.append(1.0 + self._final.adaLN_modulation(embedding)[0])
        return Schedule(tuple(scheduler.sigmas.tolist()), torch.stack(modulation), torch.stack(final_scale))

    @staticmethod
    def _shift(image_tokens: int, config: Any) -> float:
        """diffusers' `calculate_shift`: linear between the base and the maximal image length."""
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (image_tokens - config.base_image_seq_len))

    def _make_caption_rope(self, length: int) -> Tensor:
        return self._rope([(1 + i, 0, 0) for i in range(length)])

    def _make_ropes(self, caption_length: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Of the image alone and with its caption. Image positions start behind the padded caption; pads are the
        origin."""
        positions = [(caption_length + 1, row, column) for row in range(rows) for column in range(columns)]
        image = self._rope(positions + [(0, 0, 0)] * (pad_length(len(positions)) - len(positions)))
        return image, torch.cat([image, self._caption_rope(caption_length)])

    def _rope(self, positions: list[tuple[int, int, int]]) -> Tensor:
        index = torch.tensor(positions)
        angles = torch.cat([axis[index[:, i]] for i, axis in enumerate(self._frequencies)], -1)
        return torch.view_as_real(angles).to(self.device)


def _retired(key: Any) -> bool:
    """Of a recorded step: it is of an adapter that is gone."""
    return isinstance(key[-1], Adapter) and key[-1].retired
