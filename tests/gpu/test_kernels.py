"""Each fused kernel against plain PyTorch in bf16: the same roundings, so nearly always the same bits."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDTHS = [96, 384, 3840]
ULP = 2**-7  # of bf16, relative to a value


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda", torch.bfloat16)


def same(ours: object, theirs: object) -> None:
    """A sum in another order may round another way once: then one bf16 of what was added differs, and what follows."""
    assert isinstance(ours, Tensor)
    assert isinstance(theirs, Tensor)
    assert ours.shape == theirs.shape
    difference = (ours.float() - theirs.float()).abs()
    assert (difference <= 4 * ULP * theirs.float().abs().clamp(min=4)).all()
    assert (difference > 0).float().mean() < 0.02


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("normed", "gated", "scaled"), list(product([False, True], repeat=3)))
def test_residual_and_norm(width: int, normed: bool, gated: bool, scaled: bool) -> None:
    from serve.engine.kernels import FusedOps
    from serve.engine.ops import Norm, PlainOps

    x, y = bf16(3, 50, width, seed=1), bf16(3, 50, width, seed=2)
    table = bf16(3, 4, width, seed=3)  # rows are not next to each other, as in a step's modulation
    gate, scale = (table[:, 1] if gated else None), (table[:, 2] if scaled else None)
    norms = Norm(1 + 0.1 * bf16(width, seed=4), 1e-5), Norm(1 + 0.1 * bf16(width, seed=5), 1e-6)
    arguments = (x, y, norms[0] if normed else None, gate)
    for ours, theirs in zip(
        FusedOps().residual_norm(*arguments, norms[1], scale),
        PlainOps().residual_norm(*arguments, norms[1], scale),
        strict=True,
    ):
        same(ours, theirs)
    same(FusedOps().residual(*arguments), PlainOps().residual(*arguments))
    same(FusedOps().norm(x, norms[1], scale), PlainOps().norm(x, norms[1], scale))


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(30, 30, 128), (6, 6, 32), (32, 8, 128), (3, 1, 64)])
def test_norm_and_rotation(heads: int, key_heads: int, dim: int, normed: bool, halves: bool) -> None:
    from serve.engine.kernels import FusedOps
    from serve.engine.ops import Norm, PlainOps, Rotation

    packed = bf16(2, 37, heads + 2 * key_heads, dim)
    angles = torch.randn(37, dim // 2, device="cuda")
    rope = torch.stack((angles.cos(), angles.sin()), -1)
    norms = (Norm(1 + 0.1 * bf16(dim, seed=1), 1e-6), Norm(1 + 0.1 * bf16(dim, seed=2), 1e-6)) if normed else None
    splits = [heads, key_heads, key_heads]
    query, key, _ = packed.clone().split(splits, 2)
    rotation = Rotation(rope, norms, halves)
    expected = PlainOps().norm_rotate(query, key, rotation)
    ours = packed.clone()
    query, key, value = ours.split(splits, 2)
    for our, their in zip(FusedOps().norm_rotate(query, key, rotation), expected, strict=True):
        same(our, their)
    assert torch.equal(value, packed.split(splits, 2)[2])


def in_heads(batch: int, tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys as norms leave them, and values, packed as a block has them."""
    packed = bf16(batch, tokens, 3, heads, dim)
    packed[:, :, :2] = torch.nn.functional.rms_norm(packed[:, :, :2], (dim,))
    query, key, value = packed.unbind(2)
    return query, key, value


def in_fp8(x: Tensor) -> Tensor:
    return x.contiguous().to(torch.float8_e4m3fn)


def test_rotated_heads_in_fp8() -> None:
    from serve.engine.kernels import FusedOps
    from serve.engine.ops import Norm, Rotation

    query, key, _ = in_heads(2, 48, 3, 128)
    angles = torch.randn(48, 64, device="cuda")
    rope = torch.stack((angles.cos(), angles.sin()), -1)
    norms = (Norm(1 + 0.1 * bf16(128, seed=1), 1e-6), Norm(300 + bf16(128, seed=2), 1e-6))
    rotation = Rotation(rope, norms)
    in_place = FusedOps().norm_rotate(query.clone(), key.clone(), rotation)
    for ours, exact in zip(FusedOps().norm_rotate(query, key, rotation, torch.float8_e4m3fn), in_place, strict=True):
        assert ours.is_contiguous()
        assert torch.equal(ours.float(), exact.clamp(-448, 448).to(torch.float8_e4m3fn).float())
    assert in_place[1].abs().max() > 448  # what is larger than FP8 knows becomes the largest


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="needs a Hopper or a later card"
)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "dim"),
    [(1, 32, 3, 128), (2, 288, 3, 128), (2, 160, 6, 32), (3, 1088, 5, 128), (1, 4160, 2, 128)],
)
def test_fp8_attention(batch: int, tokens: int, heads: int, dim: int) -> None:
    from serve.engine import attention_kernels
    from serve.engine.ops import attention

    query, key, value = in_heads(batch, tokens, heads, dim)
    assert attention_kernels.supports(query, value)
    ours = attention_kernels.attend(in_fp8(query), in_fp8(key), value)
    exact = attention(query.float(), key.float(), value.float(), causal=False)
    assert (ours.float() - exact).norm() < 0.08 * exact.norm()
    alone = attention_kernels.attend(in_fp8(query[-1:]), in_fp8(key[-1:]), value[-1:])
    assert torch.equal(ours[-1:], alone)
    enormous = attention_kernels.attend(in_fp8(query), in_fp8(key), 1000 * value)
    assert (enormous.abs() <= 448).all()


@pytest.mark.parametrize("width", [100, 1024, 10240])
def test_gated_activation(width: int) -> None:
    from serve.engine.kernels import FusedOps
    from serve.engine.ops import PlainOps

    x = bf16(2, 33, 2 * width)
    same(FusedOps().silu_mul(x), PlainOps().silu_mul(x))


@pytest.mark.parametrize("width", [384, 3840])
def test_fp8_rows_stand_for_what_they_were_made_of(width: int) -> None:
    from serve.engine.kernels import FusedOps
    from serve.engine.ops import Norm, PlainOps, Quantized

    x, norm = bf16(2, 40, width), Norm(1 + 0.1 * bf16(width, seed=1), 1e-5)
    quantized = FusedOps(quantize=True).norm(x, norm)
    assert isinstance(quantized, Quantized)
    restored = (quantized.data.float() * quantized.scale).view(quantized.shape)
    exact = PlainOps().norm(x, norm).float()
    assert ((restored - exact).abs() <= 0.07 * exact.abs() + 0.02).all()


@pytest.mark.parametrize("width", [384, 8192, 10240])
def test_fp8_rows_of_a_product(width: int) -> None:
    from serve.engine.kernels import FusedOps
    from serve.engine.ops import PlainOps, Quantized

    x = bf16(2, 40, 2 * width)
    quantized = FusedOps(quantize=True).silu_mul(x)
    assert isinstance(quantized, Quantized)
    restored = (quantized.data.float() * quantized.scale).view(quantized.shape)
    exact = PlainOps().silu_mul(x).float()
    row = exact.abs().amax(-1, keepdim=True)
    assert ((restored - exact).abs() <= 0.07 * exact.abs() + 0.001 * row).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("channels", "side"), [(64, 8), (128, 250), (512, 33)])
def test_group_norm_of_pixels(channels: int, side: int, biased: bool) -> None:
    from serve.engine.pixel_kernels import add_biased, group_norm

    norm = torch.nn.GroupNorm(32, channels, eps=1e-6).to("cuda", torch.bfloat16)
    torch.nn.init.normal_(norm.weight, 1.0, 0.1)
    torch.nn.init.normal_(norm.bias, 0.0, 0.1)
    x = (20 + bf16(2, channels, side, side)).to(memory_format=torch.channels_last)  # a mean far from zero
    bias = bf16(channels, seed=1) if biased else None
    shifted = x if bias is None else x + bias[:, None, None]
    with torch.inference_mode():
        ours = group_norm(x, norm, silu=True, bias=bias).double()
        theirs = torch.nn.functional.silu(norm(shifted)).double()
        exact = torch.nn.functional.silu(norm.double()(shifted.double()))
        assert ((ours - exact).abs() <= 2 * ULP * exact.abs().clamp(min=1)).all()
        assert (ours - exact).norm() <= 1.01 * (theirs - exact).norm()
        if bias is not None:
            same(add_biased(x, x.flip(0).contiguous(memory_format=torch.channels_last), bias), x + shifted.flip(0))
