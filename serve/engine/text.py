"""Prompts to embeddings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serve.tokens import PromptTokens


@dataclass(frozen=True, slots=True)
class Embedding:
    """One prompt's embedding [L, C] on its way to a denoiser; bf16 travels as its bits, which Ray moves without a copy.

    `seconds` is the time of the batch that it was encoded in, `executions` its part of that one.
    """

    data: np.ndarray[tuple[int, ...], np.dtype[Any]]
    seconds: float
    executions: float = 1.0

    def tensor(self) -> Tensor:
        if self.data.dtype == np.uint16:
            return torch.from_numpy(self.data.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(self.data.copy())

    @classmethod
    def of(cls, tensor: Tensor, seconds: float, executions: float = 1.0) -> Embedding:
        cpu = tensor.contiguous().cpu()
        data = cpu.view(torch.int16).numpy().view(np.uint16) if cpu.dtype == torch.bfloat16 else cpu.numpy()
        return cls(data, seconds, executions)


class TextEncoder:
    """diffusers' `ZImagePipeline._encode_prompt` without the padding: hidden states before the last layer.

    The encoder is causal and padded on the right, so trimming to real tokens and leaving out the last layer, whose
    output is never read, changes nothing.
    """

    def __init__(self, model: Any, tokens: PromptTokens) -> None:
        self._model = getattr(model, "model", model)
        self._model.layers = self._model.layers[:-1]
        self._model.norm = nn.Identity()
        self._tokens = tokens

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> list[Embedding]:
        """One forward for all prompts; embedding `i` [L_i, C] belongs to prompt `i`."""
        started = time.perf_counter()
        ids = [self._tokens.ids(prompt) for prompt in prompts]
        length = max(map(len, ids))
        batch = torch.tensor([row + [0] * (length - len(row)) for row in ids], device=self._model.device)
        hidden = self._model(input_ids=batch, use_cache=False).last_hidden_state.cpu()
        seconds = time.perf_counter() - started
        return [Embedding.of(hidden[i, : len(row)], seconds, 1 / len(ids)) for i, row in enumerate(ids)]
