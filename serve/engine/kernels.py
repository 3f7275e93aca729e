"""Triton kernels for what lies between two matrix products in bf16: one pass over memory each, eager's roundings."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from serve.engine import attention_kernels
from serve.engine.attention_kernels import FP8_MAX
from serve.engine.ops import FP8, Activation, Norm, Quantized, Rotation, attention

ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@triton.jit
def _rms(value, weight, eps, width, dtype: tl.constexpr):
    """fp32 in and out, rounded to `dtype` before and after the weight."""
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    return (normed.to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)


@triton.jit
def _store(to, row_scale, value, row, column, width, inside, QUANTIZE: tl.constexpr):
    if QUANTIZE:
        factor = tl.maximum(tl.max(tl.abs(value), 0), 1e-12) / FP8_MAX
        tl.store(row_scale + row, factor)
        value = tl.clamp(value / factor, -FP8_MAX, FP8_MAX)
    tl.store(to + row * width + column, value.to(to.dtype.element_ty), mask=inside)


@triton.jit
def _residual_norm(
    x, y, norm, gate, following, scale, x_out, out, row_scale, eps, following_eps,
    tokens, gate_stride, scale_stride, width,
    BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr,
    FOLLOWING: tl.constexpr, SCALE: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    dtype: tl.constexpr = x.dtype.element_ty
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        added = tl.load(y + row * width + column, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            added = _rms(added, tl.load(norm + column, mask=inside, other=0.0).to(tl.float32), eps, width, dtype)
        if GATE:
            factor = tl.load(gate + (row // tokens) * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
            added = (added * factor).to(dtype).to(tl.float32)
        value = (value + added).to(dtype).to(tl.float32)
        tl.store(x_out + row * width + column, value.to(dtype), mask=inside)
    if FOLLOWING:
        weight = tl.load(following + column, mask=inside, other=0.0).to(tl.float32)
        value = _rms(value, weight, following_eps, width, dtype)
        if SCALE:
            factor = tl.load(scale + (row // tokens) * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
            value = (value * factor).to(dtype).to(tl.float32)
        _store(out, row_scale, value, row, column, width, inside, QUANTIZE)


@triton.jit
def _norm_rotate(
    query, key, query_out, key_out, query_weight, key_weight, rope, eps, tokens,
    batch_stride, token_stride, query_batch, query_token, key_batch, key_token, query_heads, key_heads,
    HEADS: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """All heads of one token's query or key."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    x, weight, to = query, query_weight, query_out + batch * query_batch + token * query_token
    if tl.program_id(1) == 1:
        x, weight, to = key, key_weight, key_out + batch * key_batch + token * key_token
    heads = tl.where(tl.program_id(1) == 1, key_heads, query_heads)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    at = head * DIM + column
    inside = (head < heads) & (column < DIM)
    dtype: tl.constexpr = x.dtype.element_ty
    value = tl.load(x + batch * batch_stride + token * token_stride + at, mask=inside, other=0.0).to(tl.float32)
    pair = tl.arange(0, DIM // 2)[None, :]
    cos = tl.load(rope + token * DIM + pair * 2)
    sin = tl.load(rope + token * DIM + pair * 2 + 1)
    if NORM:
        normed = value * tl.rsqrt(tl.sum(value * value, 1) / DIM + eps)[:, None]
        value = (normed.to(dtype).to(tl.float32) * tl.load(weight + column).to(tl.float32)).to(dtype).to(tl.float32)
    if HALVES:
        first, second = tl.split(tl.permute(tl.reshape(value, (HEADS, 2, DIM // 2)), (0, 2, 1)))
        cos, sin = cos.to(dtype).to(tl.float32), sin.to(dtype).to(tl.float32)
        left = (first * cos).to(dtype).to(tl.float32) - (second * sin).to(dtype).to(tl.float32)
        right = (second * cos).to(dtype).to(tl.float32) + (first * sin).to(dtype).to(tl.float32)
        rotated = tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (HEADS, DIM))
    else:
        even, odd = tl.split(tl.reshape(value, (HEADS, DIM // 2, 2)))
        rotated = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, DIM))
    tl.store(to + at, rotated.to(dtype).to(to.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul_part(gate_value, row, column, width):
    inside = column < width
    dtype: tl.constexpr = gate_value.dtype.element_ty
    gate = tl.load(gate_value + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(gate_value + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    return ((gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * value).to(dtype).to(tl.float32)


@triton.jit
def _silu_mul(gate_value, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    product = _silu_mul_part(gate_value, row, column, width)
    tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _silu_mul_quantize(gate_value, out, row_scale, width, BLOCK: tl.constexpr, REST: tl.constexpr):
    """A whole row at once, in two parts, as blocks have powers of two as lengths and rows need not."""
    row = tl.program_id(0).to(tl.int64)
    first, second = tl.arange(0, BLOCK), BLOCK + tl.arange(0, REST)
    left, right = _silu_mul_part(gate_value, row, first, width), _silu_mul_part(gate_value, row, second, width)
    largest = tl.maximum(tl.max(tl.abs(left), 0), tl.max(tl.abs(right), 0))
    factor = tl.maximum(largest, 1e-12) / FP8_MAX
    tl.store(row_scale + row, factor)
    left, right = (tl.clamp(left / factor, -FP8_MAX, FP8_MAX), tl.clamp(right / factor, -FP8_MAX, FP8_MAX))
    tl.store(out + row * width + first, left.to(out.dtype.element_ty), mask=first < width)
    tl.store(out + row * width + second, right.to(out.dtype.element_ty), mask=second < width)


@triton.jit
def _quantize(x, out, row_scale, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    _store(out, row_scale, value, row, column, width, inside, True)


class FusedOps:
    """`Ops` for bf16 on CUDA. With `quantize` what feeds a Linear comes as FP8 rows."""

    def __init__(self, quantize: bool = False) -> None:
        self._quantize = quantize

    def norm(self, x: Tensor, norm: Norm, scale: Tensor | None = None) -> Activation:
        activation: Activation = self._launch(x, None, None, None, norm, scale)[1]
        return activation

    def residual(self, x: Tensor, y: Tensor, norm: Norm | None = None, gate: Tensor | None = None) -> Tensor:
        return self._launch(x, y, norm, gate, None, None)[0]

    def residual_norm(
        self,
        x: Tensor,
        y: Tensor,
        norm: Norm | None,
        gate: Tensor | None,
        following: Norm,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Activation]:
        return self._launch(x, y, norm, gate, following, scale)

    def norm_rotate(
        self, query: Tensor, key: Tensor, rotation: Rotation, to: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """In place, or as new tensors of the dtype `to`."""
        batch, tokens, heads, dim = query.shape
        assert query.stride() == key.stride()
        assert query.stride()[2:] == (dim, 1)
        assert rotation.rope.is_contiguous()
        norms = rotation.norms
        weights = (query, key) if norms is None else (norms[0].weight, norms[1].weight)
        out = (
            (query, key) if to is None else (query.new_empty(query.shape, dtype=to), key.new_empty(key.shape, dtype=to))
        )
        _norm_rotate[(batch * tokens, 2)](
            query, key, *out, *weights, rotation.rope, norms[0].eps if norms else 0.0, tokens,
            *query.stride()[:2], *out[0].stride()[:2], *out[1].stride()[:2], heads, key.shape[2],
            HEADS=triton.next_power_of_2(max(heads, key.shape[2])), DIM=dim, NORM=norms is not None,
            HALVES=rotation.halves,
        )  # fmt: skip
        return out

    def silu_mul(self, gate_value: Tensor) -> Activation:
        assert gate_value.is_contiguous()
        width = gate_value.shape[-1] // 2
        rows = gate_value.numel() // (2 * width)
        out, data, scale = self._output(gate_value, width)
        if self._quantize:
            block = triton.next_power_of_2(width // 2 + 1)
            rest = triton.next_power_of_2(max(1, width - block))
            _silu_mul_quantize[(rows,)](gate_value, data, scale, width, BLOCK=block, REST=rest, num_warps=8)
        else:
            _silu_mul[(rows, triton.cdiv(width, 2048))](gate_value, data, width, BLOCK=2048, num_warps=8)
        return out

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, *, causal: bool = False
    ) -> Activation:
        if self._quantize and rotation.norms and not causal and attention_kernels.supports(query, value):
            query, key = self.norm_rotate(query, key, rotation, to=FP8)
            return self._activation(attention_kernels.attend(query, key, value))
        query, key = self.norm_rotate(query, key, rotation)
        with sdpa_kernel(ATTENTION, set_priority=True):
            return self._activation(attention(query, key, value, causal))

    def _activation(self, x: Tensor) -> Activation:
        if not self._quantize:
            return x
        out, data, scale = self._output(x, x.shape[-1])
        width = x.shape[-1]
        _quantize[(x.numel() // width,)](x, data, scale, width, BLOCK=triton.next_power_of_2(width), num_warps=8)
        return out

    def _output(self, like: Tensor, width: int) -> tuple[Activation, Tensor, Tensor | None]:
        """Room for rows of `width`: as an Activation, and the tensors that a kernel writes."""
        shape = torch.Size((*like.shape[:-1], width))
        if not self._quantize:
            data = like.new_empty(shape)
            return data, data, None
        data = like.new_empty((shape.numel() // width, width), dtype=FP8)
        scale = like.new_empty((len(data), 1), dtype=torch.float32)
        return Quantized(data, scale, shape), data, scale

    def _launch(
        self,
        x: Tensor,
        y: Tensor | None,
        norm: Norm | None,
        gate: Tensor | None,
        following: Norm | None,
        scale: Tensor | None,
    ) -> tuple[Tensor, Any]:
        assert x.is_contiguous()
        assert y is None or y.is_contiguous()
        width, tokens = x.shape[-1], x.shape[1]
        x_out = x if y is None else torch.empty_like(x)
        out, data, row_scale = self._output(x, width) if following else (x, x, None)
        _residual_norm[(x.numel() // width,)](
            x, y, norm.weight if norm else None, gate, following.weight if following else None, scale,
            x_out, data, row_scale, norm.eps if norm else 0.0, following.eps if following else 0.0, tokens,
            0 if gate is None else gate.stride(0), 0 if scale is None else scale.stride(0), width,
            BLOCK=triton.next_power_of_2(width), RESIDUAL=y is not None, NORM=norm is not None,
            GATE=gate is not None, FOLLOWING=following is not None, SCALE=scale is not None, QUANTIZE=self._quantize,
            num_warps=8, enable_fp_fusion=False,  # a product and a sum in one instruction would round once, not twice
        )  # fmt: skip
        return x_out, out
