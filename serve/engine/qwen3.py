"""The forward of Qwen3 over transformers' weights, as a text encoder needs it: no cache, no mask, no last layer.

Prompts are padded on the right and attention is causal, so a real token never sees a pad and the mask may be left out;
what is read is the input of the last layer, so neither that layer nor the norm behind it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from serve.engine.graphs import Graphs, run_stages
from serve.engine.ops import PLAIN, Activation, Linear, Norm, Ops, Rotation


class Layer:
    """One decoder layer with QKV and gate‖up fused. Takes over the weights of a transformers Qwen3DecoderLayer."""

    def __init__(self, layer: Any, ops: Ops) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._ops, self._head_dim = ops, attention.head_dim
        self._splits = [
            p.weight.shape[0] // attention.head_dim for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        self._qkv = Linear(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
        self._out = Linear(attention.o_proj.weight)
        self._norms = Norm.of(attention.q_norm), Norm.of(attention.k_norm)
        self._gate_up = Linear(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        self._down = Linear(mlp.down_proj.weight)
        del attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj
        self.before_attention, self.before_mlp = Norm.of(layer.input_layernorm), Norm.of(layer.post_attention_layernorm)

    def attend(self, x: Activation, rope: Tensor) -> Tensor:
        qkv = self._qkv(x)
        heads = qkv.view(*qkv.shape[:2], -1, self._head_dim)
        query, key, value = torch.split(heads, self._splits, 2)
        return self._out(self._ops.attend(query, key, value, Rotation(rope, self._norms, halves=True), causal=True))

    def mlp(self, x: Activation) -> Tensor:
        return self._down(self._ops.silu_mul(self._gate_up(x)))


class Qwen3:
    """Takes over the weights of a loaded `Qwen3Model`, which must not be used afterwards."""

    def __init__(self, model: Any, ops: Ops = PLAIN.ops, graphs: Graphs | None = None) -> None:
        self._ops, self._graphs = ops, graphs
        self._embeddings: Tensor = model.embed_tokens.weight
        self._layers = [Layer(layer, self._ops) for layer in model.layers[:-1]]
        self._inverse_frequencies: Tensor = model.rotary_emb.inv_freq.float()
        self._rope = lru_cache(maxsize=64)(self._make_rope)
        self.device = self._embeddings.device

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """ids [B, L], padded on the right -> the last layer's input [B, L, C]."""
        stages = [partial(self._forward, self._rope(ids.shape[1]))]
        key = ("text", *ids.shape)
        results = (
            run_stages([ids.unbind()], stages)
            if self._graphs is None
            else self._graphs.run(key, [ids.unbind()], stages)
        )
        *_, hidden = results
        return hidden

    def _forward(self, rope: Tensor, inputs: Sequence[Tensor], _: Tensor | None) -> Tensor:
        x = F.embedding(inputs[0], self._embeddings)
        normed = self._ops.norm(x, self._layers[0].before_attention)
        for depth, layer in enumerate(self._layers, 1):
            mixed = layer.attend(normed, rope)
            x, normed = self._ops.residual_norm(x, mixed, None, None, layer.before_mlp)
            fed = layer.mlp(normed)
            if depth < len(self._layers):
                x, normed = self._ops.residual_norm(x, fed, None, None, self._layers[depth].before_attention)
        return self._ops.residual(x, fed)

    def _make_rope(self, length: int) -> Tensor:
        """[length, head_dim/2, 2]"""
        angles = torch.arange(length, device=self.device)[:, None].float() * self._inverse_frequencies
        return torch.stack((angles.cos(), angles.sin()), -1)
