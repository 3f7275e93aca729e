"""Triton kernels over pictures whose channels lie together in memory: GroupNorm with SiLU, and a biased sum."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # pixels of one tile
TILES = 16  # tiles of one program's share of the statistics


@triton.jit
def _biased(at, bias, inside, HAS_BIAS: tl.constexpr):
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value = (value + bias).to(at.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def _moments(
    x, bias, sums, pixels, shares,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Σ(x - c) and Σ(x - c)² of a share of a picture's pixels by channel, c being the first pixel: nothing cancels."""
    picture, share = tl.program_id(1).to(tl.int64), tl.program_id(0)
    channel, row = tl.arange(0, CHANNELS)[None, :], tl.arange(0, ROWS)[:, None]
    shift_of = tl.load(bias + channel).to(tl.float32) if HAS_BIAS else tl.zeros((1, CHANNELS), tl.float32)
    origin = x + picture * pixels * CHANNELS
    centre = _biased(origin + channel, shift_of, channel < CHANNELS, HAS_BIAS)
    first = tl.zeros((ROWS, CHANNELS), tl.float32)
    second = tl.zeros((ROWS, CHANNELS), tl.float32)
    for tile in range(TILES):
        pixel = (share * TILES + tile).to(tl.int64) * ROWS + row
        inside = (pixel < pixels) & (channel < CHANNELS)
        value = _biased(origin + pixel * CHANNELS + channel, shift_of, inside, HAS_BIAS)
        value = tl.where(inside, value - centre, 0.0)
        first += value
        second += value * value
    to = sums + (picture * shares + share) * 2 * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(to, tl.sum(first, 0))
    tl.store(to + CHANNELS, tl.sum(second, 0))


@triton.jit
def _line(
    x, bias, sums, weight, offset, line, pixels, shares, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, SHARES: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """From the sums to `x · a + b` by channel: a [B, C] and b [B, C]."""
    picture = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    shift_of = tl.load(bias + channel).to(tl.float32) if HAS_BIAS else tl.zeros((CHANNELS,), tl.float32)
    centre = _biased(x + picture * pixels * CHANNELS + channel, shift_of, channel < CHANNELS, HAS_BIAS)
    first = tl.zeros((SHARES, CHANNELS), tl.float32)
    second = tl.zeros((SHARES, CHANNELS), tl.float32)
    start = 0
    while start < shares:
        share = start + tl.arange(0, SHARES)[:, None]
        at = sums + (picture * shares + share) * 2 * CHANNELS + channel[None, :]
        first += tl.load(at, mask=share < shares, other=0.0)
        second += tl.load(at + CHANNELS, mask=share < shares, other=0.0)
        start += SHARES
    apart, squares = tl.sum(first, 0) / pixels, tl.sum(second, 0)
    mean = centre + apart
    each: tl.constexpr = CHANNELS // GROUPS
    group_mean = tl.sum(tl.reshape(mean, (GROUPS, each)), 1) / each
    spread = squares - pixels * apart * apart
    between = tl.reshape(mean, (GROUPS, each)) - group_mean[:, None]
    variance = (tl.sum(tl.reshape(spread, (GROUPS, each)), 1) + pixels * tl.sum(between * between, 1)) / (pixels * each)
    scale = tl.reshape(tl.broadcast_to(tl.rsqrt(variance + eps)[:, None], (GROUPS, each)), (CHANNELS,))
    mean_of = tl.reshape(tl.broadcast_to(group_mean[:, None], (GROUPS, each)), (CHANNELS,))
    slope = scale * tl.load(weight + channel).to(tl.float32)
    tl.store(line + picture * 2 * CHANNELS + channel, slope)
    tl.store(
        line + picture * 2 * CHANNELS + CHANNELS + channel, tl.load(offset + channel).to(tl.float32) - mean_of * slope
    )


@triton.jit
def _apply(
    x, bias, line, out, pixels,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    picture = tl.program_id(1).to(tl.int64)
    channel, row = tl.arange(0, CHANNELS)[None, :], tl.arange(0, ROWS)[:, None]
    pixel = tl.program_id(0).to(tl.int64) * ROWS + row
    inside = (pixel < pixels) & (channel < CHANNELS)
    at = (picture * pixels + pixel) * CHANNELS + channel
    shift_of = tl.load(bias + channel).to(tl.float32) if HAS_BIAS else tl.zeros((1, CHANNELS), tl.float32)
    value = _biased(x + at, shift_of, inside, HAS_BIAS)
    slope = tl.load(line + picture * 2 * CHANNELS + channel)
    value = value * slope + tl.load(line + picture * 2 * CHANNELS + CHANNELS + channel)
    if SILU:
        value = value.to(x.dtype.element_ty).to(tl.float32)
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add(x, y, bias, out, elements, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    added = _biased(y + at, tl.load(bias + at % CHANNELS).to(tl.float32), inside, True)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + added
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def group_norm(x: Tensor, norm: Any, *, silu: bool, bias: Tensor | None = None) -> Tensor:
    """GroupNorm of x + bias, and SiLU. x [B, C, H, W], channels last; C and the groups powers of two."""
    assert x.is_contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    pixels = height * width
    rows = max(1, ROWS * 128 // channels)
    shares = triton.cdiv(pixels, rows * TILES)
    sums = x.new_empty((batch, shares, 2, channels), dtype=torch.float32)
    line = x.new_empty((batch, 2, channels), dtype=torch.float32)
    out = torch.empty_like(x)
    biased = {"CHANNELS": channels, "HAS_BIAS": bias is not None}
    _moments[(shares, batch)](x, bias, sums, pixels, shares, ROWS=rows, TILES=TILES, **biased)
    _line[(batch,)](
        x, bias, sums, norm.weight, norm.bias, line, pixels, shares, norm.eps,
        GROUPS=norm.num_groups, SHARES=max(1, 4096 // channels), **biased, num_warps=8,
    )  # fmt: skip
    _apply[(triton.cdiv(pixels, rows), batch)](x, bias, line, out, pixels, ROWS=rows, SILU=silu, **biased)
    return out


def add_biased(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + (y + bias), all [B, C, H, W] and channels last; C a power of two."""
    assert x.stride() == y.stride()
    out = torch.empty_like(x)
    block = 1024
    _add[(triton.cdiv(x.numel(), block),)](x, y, bias, out, x.numel(), CHANNELS=x.shape[1], BLOCK=block)
    return out
