"""The denoising forward of Z-Image over diffusers' weights; what does not depend on the step is hoisted out.

Same mathematics as `diffusers.ZImageTransformer2DModel` (0.42) in its basic mode: latents stay in token space, the
caption is refined once per request, the adaLN outputs are a table over the schedule. Rows of one forward share one
shape, so attention never needs a mask, and a row's result does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SEQUENCE_MULTIPLE = 32  # captions and images are padded to this with learned tokens that attend and are attended
PATCH = 2


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """diffusers' RMSNorm, roundings included: normalised in fp32, cast to the weight's dtype, then scaled."""
    if x.dtype == torch.float32 and weight.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + eps)).to(weight.dtype) * weight


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding in real arithmetic. x [B, S, heads, head_dim]; rope [S, 1, head_dim/2, 2] (cos, sin)."""
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = rope.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class Block:
    """One transformer block with QKV and w1‖w3 fused. Takes over the weights of a diffusers ZImageTransformerBlock."""

    def __init__(self, block: Any) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.heads: int = attention.heads
        self.qkv = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
        del attention.to_q, attention.to_k, attention.to_v  # never two copies of more than one block
        self.out: Tensor = attention.to_out[0].weight
        self.norm_q, self.norm_k = attention.norm_q, attention.norm_k
        self.w13 = torch.cat([feed_forward.w1.weight, feed_forward.w3.weight])
        del feed_forward.w1, feed_forward.w3
        self.w2: Tensor = feed_forward.w2.weight
        self.norms = [
            (norm.weight, norm.eps)
            for norm in (block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2)
        ]
        self.modulation: nn.Module | None = block.adaLN_modulation if block.modulation else None

    def modulate(self, time_embedding: Tensor) -> Tensor:
        """time_embedding [1, C] -> [4, D]: attention scale and gate, feed-forward scale and gate, ready to multiply."""
        assert self.modulation is not None
        scale_a, gate_a, scale_f, gate_f = self.modulation(time_embedding)[0].chunk(4)
        return torch.stack((1.0 + scale_a, gate_a.tanh(), 1.0 + scale_f, gate_f.tanh()))

    def __call__(self, x: Tensor, rope: Tensor, modulation: Tensor | None) -> Tensor:
        """x [B, S, D]; rope [S, 1, head_dim/2, 2]; modulation [B, 4, D] or None for the context refiner."""
        if modulation is None:
            x = x + self._norm(1, self._attend(self._norm(0, x), rope))
            return x + self._norm(3, self._feed_forward(self._norm(2, x)))
        scale_a, gate_a, scale_f, gate_f = modulation.unsqueeze(2).unbind(1)
        x = x + gate_a * self._norm(1, self._attend(self._norm(0, x) * scale_a, rope))
        return x + gate_f * self._norm(3, self._feed_forward(self._norm(2, x) * scale_f))

    def _norm(self, which: int, x: Tensor) -> Tensor:
        weight, eps = self.norms[which]
        return rms_norm(x, weight, eps)

    def _attend(self, x: Tensor, rope: Tensor) -> Tensor:
        query, key, value = F.linear(x, self.qkv).view(*x.shape[:2], 3, self.heads, -1).unbind(2)
        if self.norm_q is not None:
            query = rms_norm(query, self.norm_q.weight, self.norm_q.eps)
            key = rms_norm(key, self.norm_k.weight, self.norm_k.eps)
        query, key = rotate(query, rope), rotate(key, rope)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return F.linear(mixed.transpose(1, 2).flatten(2), self.out)

    def _feed_forward(self, x: Tensor) -> Tensor:
        gate, value = F.linear(x, self.w13).chunk(2, -1)
        return F.linear(F.silu(gate) * value, self.w2)


@dataclass(frozen=True, slots=True)
class Caption:
    """A prompt as the denoiser needs it, refined once per request.

    tokens [T, D] with T a multiple of 32; rope [T, 1, head_dim/2, 2].
    """

    tokens: Tensor
    rope: Tensor

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
    """Takes over the weights of a loaded `ZImageTransformer2DModel`, which must not be used afterwards."""

    def __init__(self, model: Any, scheduler: Any) -> None:
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self._scheduler_class, self._scheduler_config = type(scheduler), scheduler.config
        self._t_embedder, self._t_scale = model.t_embedder, model.t_scale
        self._x_embedder, self._x_pad = model.all_x_embedder["2-1"], model.x_pad_token
        self._caption_embedder, self._caption_pad = model.cap_embedder, model.cap_pad_token
        self._frequencies = model.rope_embedder.precompute_freqs_cis(
            model.axes_dims, model.axes_lens, theta=model.rope_theta
        )
        self._final = model.all_final_layer["2-1"]
        self._noise_refiner = [Block(block) for block in model.noise_refiner]
        self._context_refiner = [Block(block) for block in model.context_refiner]
        self._layers = [Block(block) for block in model.layers]
        self.channels: int = model.in_channels
        self.embedding_size: int = model.cap_embedder[1].in_features
        self._schedule = lru_cache(maxsize=64)(self._make_schedule)
        self._image_rope = lru_cache(maxsize=64)(self._make_image_rope)

    def noise(self, seed: int, height: int, width: int) -> Tensor:
        """Initial latents [N, 4 * C] fp32, drawn on the CPU: the same picture on every device and batch position."""
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.channels, height // 8, width // 8)
        return patchify(torch.randn(shape, generator=generator, dtype=torch.float32)[0]).to(self.device)

    @torch.inference_mode()
    def caption(self, embeddings: Tensor) -> Caption:
        """embeddings [L, C] from the text encoder -> refined caption; pads are learned tokens, not masked ones."""
        length, total = len(embeddings), pad_length(len(embeddings))
        tokens = self._caption_embedder(embeddings.to(self.device, self.dtype))
        if total > length:
            tokens = torch.cat([tokens, self._caption_pad.expand(total - length, -1)])
        rope = self._rope([(1 + i, 0, 0) for i in range(total)])
        refined = tokens[None]
        for block in self._context_refiner:
            refined = block(refined, rope, None)
        return Caption(refined[0], rope)

    def schedule(self, steps: int, image_tokens: int) -> Schedule:
        """Sigmas by the model's own scheduler; `image_tokens` matters only where its shift depends on resolution."""
        return self._schedule(steps, image_tokens if self._scheduler_config.use_dynamic_shifting else 0)

    def velocity(self, rows: list[Row]) -> Tensor:
        """One forward over rows of one shape. Returns [B, N, 4 * C] fp32, signed so that x += (σ' - σ) · v."""
        (velocity,) = self.segments(rows, 1)
        return velocity

    @torch.inference_mode()
    def segments(self, rows: list[Row], parts: int) -> Iterator[Tensor]:
        """The same forward in `parts` of about equal time: yields after each, last of all the velocity.

        Between two parts any other forward may run, and the rest may be left undone.
        """
        first = rows[0]
        modulation = torch.stack([row.schedule.modulation[row.step] for row in rows], 1)
        x = self._x_embedder(torch.stack([row.latents for row in rows]).to(self.dtype))
        tokens = x.shape[1]
        padding = pad_length(tokens) - tokens
        if padding:
            x = torch.cat([x, self._x_pad.expand(len(rows), padding, -1)], 1)
        image_rope = self._image_rope(first.caption.length, first.height // 16, first.width // 16)
        for depth, block in enumerate(self._noise_refiner):
            x = block(x, image_rope, modulation[depth])
        x = torch.cat([x, torch.stack([row.caption.tokens for row in rows])], 1)
        rope = torch.cat([image_rope, first.caption.rope])
        ends = [len(self._layers) * part // parts for part in range(1, parts + 1)]
        for part, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
            for depth in range(start, end):
                x = self._layers[depth](x, rope, modulation[len(self._noise_refiner) + depth])
            if part < parts:
                yield x
        final_scale = torch.stack([row.schedule.final_scale[row.step] for row in rows]).unsqueeze(1)
        output: Tensor = self._final.linear(self._final.norm_final(x[:, :tokens]) * final_scale)
        yield -output.float()

    @torch.inference_mode()
    def _make_schedule(self, steps: int, image_tokens: int) -> Schedule:
        scheduler = self._scheduler_class.from_config(self._scheduler_config)
        scheduler.set_timesteps(
            sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=self._shift(image_tokens, scheduler.config)
        )
        modulation, final_scale = [], []
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

    def _make_image_rope(self, caption_length: int, rows: int, columns: int) -> Tensor:
        """Image positions start behind the padded caption; pad positions are the origin."""
        positions = [(caption_length + 1, row, column) for row in range(rows) for column in range(columns)]
        return self._rope(positions + [(0, 0, 0)] * (pad_length(len(positions)) - len(positions)))

    def _rope(self, positions: list[tuple[int, int, int]]) -> Tensor:
        index = torch.tensor(positions)
        angles = torch.cat([axis[index[:, i]] for i, axis in enumerate(self._frequencies)], -1)
        return torch.view_as_real(angles).unsqueeze(1).to(self.device)
