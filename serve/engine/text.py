"""Prompts to embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve.messages import Span
from serve.tokens import PromptTokens


@dataclass(frozen=True, slots=True)
class Embedding:
    """One prompt's embedding [L, C] on its way to a denoiser; bf16 travels as its bits, which Ray moves without a copy.

    `seconds` is the time of the batch that it was encoded in, `executions` its part of that one, and `encoding` when
    that was; None for one that was remembered.
    """

    data: np.ndarray[tuple[int, ...], np.dtype[Any]]
    seconds: float
    executions: float = 1.0
    encoding: Span | None = None

    def tensor(self) -> Tensor:
        if self.data.dtype == np.uint16:
            return torch.from_numpy(self.data.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(self.data.copy())

    @classmethod
    def of(cls, tensor: Tensor, seconds: float, executions: float = 1.0, encoding: Span | None = None) -> Embedding:
        cpu = tensor.contiguous().cpu()
        data = cpu.view(torch.int16).numpy().view(np.uint16) if cpu.dtype == torch.bfloat16 else cpu.numpy()
        return cls(data, seconds, executions, encoding)


class TextEncoder:
    """diffusers' `ZImagePipeline._encode_prompt` without the padding: hidden states before the last layer.

    `forward` maps ids [B, L] to those [B, L, C]. It is causal and padded on the right, so what stands behind a prompt
    changes nothing, and lengths may be rounded up to a multiple that makes shapes come again.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], tokens: PromptTokens, device: torch.device, multiple: int
    ) -> None:
        self._forward, self._tokens = forward, tokens
        self._device, self._multiple = device, multiple

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> list[Embedding]:
        """One forward for all prompts; embedding `i` [L_i, C] belongs to prompt `i`."""
        began, started = time.time(), time.perf_counter()
        ids = [self._tokens.ids(prompt) for prompt in prompts]
        length = -(-max(map(len, ids)) // self._multiple) * self._multiple
        batch = torch.tensor([row + [0] * (length - len(row)) for row in ids]).to(self._device)
        hidden = self._forward(batch).cpu()
        seconds = time.perf_counter() - started
        encoding = Span(began, time.time())
        return [Embedding.of(hidden[i, : len(row)], seconds, 1 / len(ids), encoding) for i, row in enumerate(ids)]
