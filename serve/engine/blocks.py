"""Transformer blocks over diffusers' weights, with QKV and w1‖w3 fused, and blocks in sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serve.engine.lora import BlockTerms
from serve.engine.ops import Activation, Arithmetic, Norm, Ops, Rotation


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
        mixed = self._ops.attend(query, key, value, Rotation(rope, self._norms))
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
