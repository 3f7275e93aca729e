"""Muon for many small matrices: those of one shape are orthogonalised together, in a few large products."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


@dataclass(frozen=True, slots=True)
class _Stack:
    """Parameters of one shape and their momentum [N, rows, columns]."""

    parameters: list[Tensor]
    momentum: Tensor

    @property
    def scale(self) -> float:
        """Makes updates about as large as AdamW's, so that both share a range of learning rates."""
        return 0.2 * math.sqrt(max(self.momentum.shape[1:]))


class Muon:
    """Nesterov momentum, orthogonalised; the same update as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`."""

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        self.learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            shapes[parameter.shape].append(parameter)
        self._stacks = [
            _Stack(group, torch.zeros(len(group), *shape, device=group[0].device)) for shape, group in shapes.items()
        ]

    @torch.no_grad()
    def step(self) -> None:
        for stack in self._stacks:
            gradients = torch.stack([_gradient(parameter) for parameter in stack.parameters]).float()
            stack.momentum.lerp_(gradients, 1 - self._momentum)
            update = orthogonalize(gradients.lerp(stack.momentum, self._momentum))
            torch._foreach_mul_(stack.parameters, 1 - self.learning_rate * self._weight_decay)
            torch._foreach_add_(stack.parameters, list((update * (-self.learning_rate * stack.scale)).unbind()))

    def zero_grad(self) -> None:
        for stack in self._stacks:
            for parameter in stack.parameters:
                parameter.grad = None


def orthogonalize(matrices: Tensor) -> Tensor:
    """Singular values of [N, rows, columns] pushed to about 1 by Newton-Schulz, in bf16 on a GPU."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
