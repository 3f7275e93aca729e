"""What lies between two matrix products, in plain PyTorch; `serve.engine.kernels` fuses the same for a GPU.

Both round as diffusers and transformers do: a norm ends in the model's dtype before its weight is applied, and so does
every product after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm's weight [D] and epsilon."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> Norm:
        eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
        return cls(module.weight, eps)


@dataclass(frozen=True, slots=True)
class Rotation:
    """How queries and keys are normed, each by its own norm, and then rotated by their places.

    rope [S, head_dim/2, 2] (cos, sin) turns pairs of neighbours, or with `halves` the same places of both halves.
    """

    rope: Tensor
    norms: tuple[Norm, Norm] | None
    halves: bool = False


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows in FP8: data [M, K] e4m3, scale [M, 1] fp32; `shape` is that of the tensor it stands for."""

    data: Tensor
    scale: Tensor
    shape: torch.Size


Activation = Tensor | Quantized


class Ops(Protocol):
    """x, y [B, S, D]; gate and scale [B, D], or None for one; what is returned as Activation feeds a Linear."""

    def norm(self, x: Tensor, norm: Norm, scale: Tensor | None = None) -> Activation:
        """norm(x) · scale"""

    def residual(self, x: Tensor, y: Tensor, norm: Norm | None = None, gate: Tensor | None = None) -> Tensor:
        """x + gate · norm(y)"""

    def residual_norm(
        self,
        x: Tensor,
        y: Tensor,
        norm: Norm | None,
        gate: Tensor | None,
        following: Norm,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Activation]:
        """x' = x + gate · norm(y), and following(x') · scale"""

    def silu_mul(self, gate_value: Tensor) -> Activation:
        """[..., 2F] -> silu(first half) · second half"""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, *, causal: bool = False
    ) -> Activation:
        """Attention of queries and keys that are normed and rotated first, perhaps in place.

        [B, S, heads, head_dim] -> [B, S, heads · head_dim]; key and value may have fewer heads.
        """


class PlainOps:
    """Every device and dtype."""

    def norm(self, x: Tensor, norm: Norm, scale: Tensor | None = None) -> Tensor:
        normed = rms_norm(x, norm)
        return normed if scale is None else normed * scale.unsqueeze(1)

    def residual(self, x: Tensor, y: Tensor, norm: Norm | None = None, gate: Tensor | None = None) -> Tensor:
        normed = y if norm is None else rms_norm(y, norm)
        return x + (normed if gate is None else gate.unsqueeze(1) * normed)

    def residual_norm(
        self,
        x: Tensor,
        y: Tensor,
        norm: Norm | None,
        gate: Tensor | None,
        following: Norm,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = self.residual(x, y, norm, gate)
        return x, self.norm(x, following, scale)

    def norm_rotate(self, query: Tensor, key: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        if rotation.norms is not None:
            query, key = (rms_norm(x, norm) for x, norm in zip((query, key), rotation.norms, strict=True))
        turn = rotate_halves if rotation.halves else rotate
        return turn(query, rotation.rope), turn(key, rotation.rope)

    def silu_mul(self, gate_value: Tensor) -> Tensor:
        gate, value = gate_value.chunk(2, -1)
        return F.silu(gate) * value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, *, causal: bool = False) -> Tensor:
        query, key = self.norm_rotate(query, key, rotation)
        return attention(query, key, value, causal)


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    grouped = query.shape[2] != key.shape[2]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=grouped)
    return mixed.transpose(1, 2).flatten(2)


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """diffusers' RMSNorm, roundings included: normalised in fp32, cast to the weight's dtype, then scaled."""
    if x.dtype == torch.float32 and norm.weight.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(variance + norm.eps)).to(norm.weight.dtype) * norm.weight


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Z-Image's rotary embedding: neighbours are a pair, real arithmetic in fp32."""
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = rope.unsqueeze(1).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


def rotate_halves(x: Tensor, rope: Tensor) -> Tensor:
    """Qwen's rotary embedding: the halves are the pairs, in the model's dtype."""
    first, second = x.chunk(2, -1)
    cos, sin = rope.to(x.dtype).unsqueeze(1).unbind(-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Linear:
    """A matrix [out, in] without a bias."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor)
        return F.linear(x, self._weight)


class Fp8Linear:
    """A matrix [out, in] with one scale per row, for rows with a scale each; products are summed in fp32."""

    def __init__(self, weight: Tensor) -> None:
        largest = torch.finfo(FP8).max
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
        self._weight = (weight.float() / scale).to(FP8).t()
        self._scale, self._dtype = scale.t().contiguous(), weight.dtype

    def __call__(self, x: Activation) -> Tensor:
        assert isinstance(x, Quantized)
        product: Tensor = torch._scaled_mm(
            x.data, self._weight, x.scale, self._scale, out_dtype=self._dtype, use_fast_accum=True
        )
        return product.view(*x.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How blocks compute: operations and matrices that fit each other."""

    ops: Ops
    linear: Callable[[Tensor], Linear | Fp8Linear]


PLAIN = Arithmetic(PlainOps(), Linear)
