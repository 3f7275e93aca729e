"""Attention in FP8 as a Triton kernel: PyTorch has none, and cuDNN's, which has bindings of its own, is no faster.

e4m3 keeps three bits behind the first from 2**-6 to 448 and what lies above becomes 448, so nothing is scaled: queries
and keys are normed, and values are products of normed rows, about one in size. Weights of the sum are multiplied by
2**8, which uses that range, and cancels out.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from serve.engine.ops import FP8

CAPABILITY = (9, 0)  # Hopper loads tiles by descriptors
QUERIES, KEYS, WARPS, STAGES = 64, 128, 4, 3  # of a tile; tuned on an H200
SHARED_BYTES = 128 << 10  # more than a tile takes
ROWS = 64  # of values that are transposed at once
HEADROOM = tl.constexpr(8.0)
FP8_MAX = tl.constexpr(448.0)


@triton.jit
def _transpose(
    value, out, tokens, batch_stride, token_stride, HEADS: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr
):
    """[B, S, H, D] to FP8 [B, H, D, S]: the tensor cores want an FP8 matrix's sum along its rows."""
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    token, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    at = value + batch.to(tl.int64) * batch_stride + token[:, None].to(tl.int64) * token_stride + head * DIM
    rows = tl.load(at + column[None, :], mask=token[:, None] < tokens, other=0.0).to(tl.float32)
    fp8 = tl.clamp(rows, -FP8_MAX, FP8_MAX).to(out.dtype.element_ty)
    to = out + (tl.program_id(1).to(tl.int64) * DIM + column[:, None]) * tokens + token[None, :]
    tl.store(to, tl.trans(fp8), mask=token[None, :] < tokens)


@triton.jit
def _add_keys(
    query, keys, values, row, head, transposed_row, key, tokens, scale, total, weight, largest,
    DIM: tl.constexpr, KEYS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """One tile of keys more in the running softmax."""
    score = tl.dot(query, keys.load([row + key, head * DIM]).T)
    if MASK:
        score = tl.where((key + tl.arange(0, KEYS))[None, :] < tokens, score, -float("inf"))
    larger = tl.maximum(largest, tl.max(score, 1) * scale)
    part = tl.math.exp2(score * scale - (larger - HEADROOM)[:, None])
    before = tl.math.exp2(largest - larger)
    value = values.load([transposed_row, key]).T
    total = tl.dot(part.to(value.dtype), value, total * before[:, None])
    return total, weight * before + tl.sum(part, 1), larger


@triton.jit
def _attention(
    queries, keys, values, out, tokens, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head; `scale` is for exponents of two."""
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    first, row, transposed_row = tl.program_id(0) * QUERIES, batch * tokens, tl.program_id(1) * DIM
    query = queries.load([row + first, head * DIM])
    total = tl.zeros([QUERIES, DIM], tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    largest = tl.full([QUERIES], -float("inf"), tl.float32)
    whole = tokens // KEYS * KEYS
    for key in tl.range(0, whole, KEYS):
        total, weight, largest = _add_keys(
            query, keys, values, row, head, transposed_row, key, tokens, scale, total, weight, largest,
            DIM, KEYS, False,
        )  # fmt: skip
    if whole < tokens:
        total, weight, largest = _add_keys(
            query, keys, values, row, head, transposed_row, whole, tokens, scale, total, weight, largest,
            DIM, KEYS, True,
        )  # fmt: skip
    token, column = first + tl.arange(0, QUERIES)[:, None], tl.arange(0, DIM)[None, :]
    to = out + ((row + token).to(tl.int64) * HEADS + head) * DIM + column
    tl.store(to, (total / weight[:, None]).to(out.dtype.element_ty), mask=token < tokens)


def supports(query: Tensor, value: Tensor) -> bool:
    """As many heads of values as of queries, rows that descriptors can begin at, and a card that has these."""
    _, tokens, _, dim = query.shape
    fits = query.shape == value.shape and tokens % 16 == 0 and 32 <= dim <= 128
    return fits and _card_supports(query.get_device())


@lru_cache
def _card_supports(device: int) -> bool:
    shared: int = triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"]
    return torch.cuda.get_device_capability(device) >= CAPABILITY and shared >= SHARED_BYTES


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query, key [B, S, H, D] in FP8 without gaps, value the same in bf16 -> [B, S, H · D] in bf16. No masks."""
    batch, tokens, heads, dim = query.shape
    transposed = torch.empty((batch, heads, dim, tokens), dtype=FP8, device=value.device)
    _transpose[(triton.cdiv(tokens, ROWS), batch * heads)](
        value, transposed, tokens, value.stride(0), value.stride(1), HEADS=heads, DIM=dim, ROWS=ROWS
    )
    out = torch.empty((batch, tokens, heads * dim), dtype=value.dtype, device=value.device)
    width = heads * dim
    queries, keys = (
        TensorDescriptor(x, [batch * tokens, width], [width, 1], [rows, dim])
        for x, rows in ((query, QUERIES), (key, KEYS))
    )
    values = TensorDescriptor(transposed, [batch * width, tokens], [tokens, 1], [dim, KEYS])
    _attention[(triton.cdiv(tokens, QUERIES), batch * heads)](
        queries, keys, values, out, tokens, math.log2(math.e) / math.sqrt(dim),
        HEADS=heads, DIM=dim, QUERIES=QUERIES, KEYS=KEYS, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out
