"""The networks' forward passes for batches of one size: the same maths as the library classes, made to train fast.

diffusers runs the transformer over lists of images of any sizes; here everything is one tensor, so that a block is one
compiled graph. Weights stay in the library's modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Model

from training.models import LATENT_CHANNELS, PATCH

_EPS = 1e-5
_PAD_MULTIPLE = 32


class Rope(NamedTuple):
    """Cosines and sines [tokens, head_dim / 2]."""

    cos: Tensor
    sin: Tensor


class BlockWeights(NamedTuple):
    """One transformer block, as a plain tuple of tensors: compiled code is shared by all blocks."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    query_norm: Tensor
    key_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    attention_norms: tuple[Tensor, Tensor]
    feed_forward_norms: tuple[Tensor, Tensor]
    modulation: tuple[Tensor, Tensor] | None


# (tokens [B, S, D], rope, timestep embedding [B, E] or None, weights) -> tokens
Block = Callable[[Tensor, Rope, Tensor | None, BlockWeights], Tensor]


def transformer_block(x: Tensor, rope: Rope, condition: Tensor | None, weights: BlockWeights) -> Tensor:
    before_attention, after_attention = weights.attention_norms
    before_feed_forward, after_feed_forward = weights.feed_forward_norms
    if condition is None or weights.modulation is None:
        x = x + _rms(_attention(_rms(x, before_attention), rope, weights), after_attention)
        return x + _rms(_feed_forward(_rms(x, before_feed_forward), weights), after_feed_forward)
    modulation = functional.linear(condition, *weights.modulation).float()[:, None]
    scale_attention, gate_attention, scale_feed_forward, gate_feed_forward = modulation.chunk(4, -1)
    inner = _attention(_rms(x, before_attention) * (1 + scale_attention), rope, weights)
    x = x + gate_attention.tanh() * _rms(inner, after_attention)
    inner = _feed_forward(_rms(x, before_feed_forward) * (1 + scale_feed_forward), weights)
    return x + gate_feed_forward.tanh() * _rms(inner, after_feed_forward)


class BatchedTransformer:
    """ZImageTransformer2DModel for patchified latents of one size and captions padded to one length."""

    def __init__(
        self,
        model: ZImageTransformer2DModel,
        image_block: Block = transformer_block,
        caption_block: Block = transformer_block,
    ) -> None:
        self._model = model
        self._image_block = image_block
        self._caption_block = caption_block
        self._noise_refiner = [_weights(block) for block in model.noise_refiner]
        self._context_refiner = [_weights(block) for block in model.context_refiner]
        self._layers = [_weights(block) for block in model.layers]

    def __call__(
        self, patches: Tensor, time: Tensor, states: Tensor, lengths: Tensor, ropes: tuple[Rope, Rope]
    ) -> Tensor:
        """Velocity [B, N, 64].

        Of patches [B, N, 64] at time [B] (1 - sigma), given text states [B, S, C] of which `lengths` [B] are real.
        """
        image_rope, caption_rope = ropes
        condition = self._model.t_embedder(time * self._model.t_scale)
        x = self._embed_image(patches, len(image_rope.cos))
        for weights in self._noise_refiner:
            x = self._image_block(x, image_rope, condition, weights)
        caption = self._embed_caption(states, lengths)
        for weights in self._context_refiner:
            caption = self._caption_block(caption, caption_rope, None, weights)
        x = torch.cat([x, caption], 1)
        rope = Rope(*(torch.cat(tables) for tables in zip(image_rope, caption_rope, strict=True)))
        for weights in self._layers:
            x = self._image_block(x, rope, condition, weights)
        return self._final(x[:, : patches.shape[1]], condition)

    def _embed_image(self, patches: Tensor, padded: int) -> Tensor:
        x: Tensor = self._model.all_x_embedder[PATCH](patches).float()
        missing = padded - x.shape[1]
        return torch.cat([x, self._model.x_pad_token.float().expand(len(x), missing, -1)], 1) if missing else x

    def _embed_caption(self, states: Tensor, lengths: Tensor) -> Tensor:
        norm, linear = self._model.cap_embedder
        caption = functional.linear(_rms(states, norm.weight, norm.eps), linear.weight, linear.bias).float()
        padding = torch.arange(states.shape[1], device=states.device)[None] >= lengths[:, None]
        return torch.where(padding[..., None], self._model.cap_pad_token.float(), caption)

    def _final(self, x: Tensor, condition: Tensor) -> Tensor:
        final = self._model.all_final_layer[PATCH]
        modulation = final.adaLN_modulation[1]
        scale = 1 + functional.linear(functional.silu(condition), modulation.weight, modulation.bias).float()[:, None]
        x = functional.layer_norm(x.float(), (x.shape[-1],), eps=1e-6) * scale
        return functional.linear(x, final.linear.weight, final.linear.bias)


def image_ropes(
    model: ZImageTransformer2DModel, rows: int, columns: int, caption: int, device: torch.device
) -> tuple[Rope, Rope]:
    """For `rows` x `columns` patches, padded as diffusers pads them, and for `caption` tokens."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = torch.stack([torch.full((rows * columns,), caption + 1), row.flatten(), column.flatten()], 1)
    image = functional.pad(image, (0, 0, 0, -len(image) % _PAD_MULTIPLE))
    text = functional.pad(torch.arange(1, caption + 1)[:, None], (0, 2))
    frequencies = [
        1.0 / model.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width) for width in model.axes_dims
    ]

    def rope(positions: Tensor) -> Rope:
        angles = torch.cat([positions[:, i : i + 1] * frequency for i, frequency in enumerate(frequencies)], 1)
        return Rope(angles.cos().float().to(device), angles.sin().float().to(device))

    return rope(image), rope(text)


def text_states(model: Qwen3Model, ids: Tensor, rope: Rope) -> Tensor:
    """`hidden_states[-2]` [B, S, C] of right-padded ids [B, S]; exact where tokens are real, as attention is causal."""
    x: Tensor = model.embed_tokens(ids).float()
    for layer in model.layers[:-1]:
        x = x + _text_attention(layer.self_attn, _rms_of(layer.input_layernorm, x), rope)
        inner, mlp = _rms_of(layer.post_attention_layernorm, x), layer.mlp
        x = x + mlp.down_proj(functional.silu(mlp.gate_proj(inner)) * mlp.up_proj(inner))
    return x


def text_rope(model: Qwen3Model, tokens: int, device: torch.device) -> Rope:
    width = model.config.head_dim
    theta = model.config.rope_parameters["rope_theta"]
    frequency = 1.0 / theta ** (torch.arange(0, width, 2).double() / width)
    angles = torch.outer(torch.arange(tokens).double(), frequency)
    return Rope(angles.cos().float().to(device), angles.sin().float().to(device))


def patchify(latents: Tensor) -> Tensor:
    """[B, 16, h, w] -> [B, h w / 4, 64], each patch in the order row, column, channel."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, height * width // 4, 4 * channels)


def unpatchify(patches: Tensor, height: int, width: int) -> Tensor:
    latents = patches.view(len(patches), height // 2, width // 2, 2, 2, LATENT_CHANNELS).permute(0, 5, 1, 3, 2, 4)
    return latents.reshape(len(patches), LATENT_CHANNELS, height, width)


def _weights(block: Any) -> BlockWeights:
    attention, feed_forward = block.attention, block.feed_forward
    return BlockWeights(
        query=attention.to_q.weight,
        key=attention.to_k.weight,
        value=attention.to_v.weight,
        out=attention.to_out[0].weight,
        query_norm=attention.norm_q.weight,
        key_norm=attention.norm_k.weight,
        gate=feed_forward.w1.weight,
        up=feed_forward.w3.weight,
        down=feed_forward.w2.weight,
        attention_norms=(block.attention_norm1.weight, block.attention_norm2.weight),
        feed_forward_norms=(block.ffn_norm1.weight, block.ffn_norm2.weight),
        modulation=(block.adaLN_modulation[0].weight, block.adaLN_modulation[0].bias) if block.modulation else None,
    )


def _attention(x: Tensor, rope: Rope, weights: BlockWeights) -> Tensor:
    batch, tokens, width = x.shape
    head_width = len(weights.query_norm)
    projected = functional.linear(x, torch.cat([weights.query, weights.key, weights.value]))
    query, key, value = projected.view(batch, tokens, 3, -1, head_width).unbind(2)
    query = _rotate_pairs(_rms(query, weights.query_norm), rope).to(value.dtype)
    key = _rotate_pairs(_rms(key, weights.key_norm), rope).to(value.dtype)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    inner = functional.scaled_dot_product_attention(query, key, value)
    return functional.linear(inner.transpose(1, 2).reshape(batch, tokens, width), weights.out)


def _feed_forward(x: Tensor, weights: BlockWeights) -> Tensor:
    gate, up = functional.linear(x, torch.cat([weights.gate, weights.up])).chunk(2, -1)
    return functional.linear(functional.silu(gate) * up, weights.down)


def _text_attention(attention: Any, x: Tensor, rope: Rope) -> Tensor:
    batch, tokens, _ = x.shape
    query, key, value = (
        projection(x).view(batch, tokens, -1, attention.head_dim)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query = _rotate_halves(_rms_of(attention.q_norm, query), rope).to(value.dtype).transpose(1, 2)
    key = _rotate_halves(_rms_of(attention.k_norm, key), rope).to(value.dtype).transpose(1, 2)
    groups = attention.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.transpose(1, 2).repeat_interleave(groups, 1)
    inner = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    out: Tensor = attention.o_proj(inner.transpose(1, 2).reshape(batch, tokens, -1))
    return out


def _rms(x: Tensor, weight: Tensor, eps: float = _EPS) -> Tensor:
    return functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps)


def _rms_of(norm: Any, x: Tensor) -> Tensor:
    return _rms(x, norm.weight, norm.variance_epsilon)


def _rotate_pairs(x: Tensor, rope: Rope) -> Tensor:
    """Z-Image rotates neighbours; x [B, S, heads, head_dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = rope.cos[:, None], rope.sin[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _rotate_halves(x: Tensor, rope: Rope) -> Tensor:
    """Qwen rotates the first half against the second."""
    first, second = x.chunk(2, -1)
    cos, sin = rope.cos[:, None], rope.sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
