"""ControlNets on a device: blocks beside those of the transformer that read a picture and add to what these return.

Same mathematics as diffusers' `ZImageControlNetModel` (0.42), in all three kinds of it. What it computes with the
transformer's own weights is not computed twice where it is the same, and a block of it runs just before its result is
added, so that there is never more than one result in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache
from diffusers import ZImageControlNetModel
from safetensors.torch import load_file
from torch import Tensor, nn

from serve.controlnets import ControlNetFile, digest_with
from serve.engine.blocks import Block, Stack
from serve.engine.lora import own_stream
from serve.engine.ops import PLAIN, Arithmetic
from serve.errors import WeightsError

SCHEDULES = 16  # of one ControlNet, whose modulations are remembered

Through = Callable[[Tensor], Tensor]
"""One block of the transformer: x [B, P, D] -> [B, P, D]."""

Layers = Callable[[slice, Tensor], Tensor]
"""Some layers of the transformer: x [B, S, D] -> [B, S, D]."""


class ControlBlock:
    """A transformer block on the control's own stream, and the matrices by which it meets the transformer's."""

    def __init__(self, block: Any, arithmetic: Arithmetic) -> None:
        self.before: nn.Module | None = getattr(block, "before_proj", None)
        self.after: nn.Module = block.after_proj
        self.block = Block(block, arithmetic)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of the rows of a step: tokens [B, P, D] of their pictures, modulation [B, blocks, 4, D], strength [B]."""

    tokens: Tensor
    modulation: Tensor
    strength: Tensor

    def scaled(self, hint: Tensor) -> Tensor:
        """Rounded as a product with a Python number is."""
        return (hint.float() * self.strength.view(-1, 1, 1)).to(hint.dtype)


class ControlNet:
    """Takes over the weights of a `ZImageControlNetModel`, which must not be used afterwards.

    `retired` says that nobody will use it again: what was recorded with it may go.
    """

    def __init__(self, file: ControlNetFile, model: Any, arithmetic: Arithmetic) -> None:
        config = model.config
        self.name, self.digest = file.name, file.digest
        self.nbytes = sum(parameter.nbytes for parameter in model.parameters())
        self.retired = False
        self.channels: int = config.control_in_dim
        self.embed: nn.Module = model.control_all_x_embedder["2-1"]
        self.schedules: LRUCache[Any, Tensor] = LRUCache(SCHEDULES)
        self._ops = arithmetic.ops
        self._places: tuple[int, ...] = tuple(config.control_layers_places)
        self._refined: tuple[int, ...] = tuple(config.control_refiner_layers_places or ())
        own = list(model.control_noise_refiner or ())
        plain = config.add_control_noise_refiner is None
        self._plain = [Block(block, arithmetic) for block in own if plain]
        refiners = [ControlBlock(block, arithmetic) for block in own if not plain]
        self._layers = [ControlBlock(block, arithmetic) for block in model.control_layers]
        self._after_refiners = len(own)  # where its layers begin among those that are modulated
        self._refiners, self._first = refiners, 0
        if config.add_control_noise_refiner == "control_layers":
            self._refiners, self._first = self._layers, self._after_refiners
        self.modulated = [*self._plain, *(it.block for it in refiners), *(it.block for it in self._layers)]

    def begin(
        self, inputs: Inputs, rope: Tensor, embedded: Tensor, refined: Tensor, refiners: Sequence[Through]
    ) -> tuple[Tensor, Tensor]:
        """Its tokens [B, P, D] before its layers, and the image's as these see them.

        `embedded` are the image's before the transformer's noise `refiners`, and `refined` after them.
        """
        if not self._refiners:
            return self._refine_plainly(inputs, rope), refined
        state, hints = _joined(self._refiners[0], inputs.tokens, embedded), []
        for index, block in enumerate(self._refiners):
            state = self._step(block, state, rope, inputs, self._first + index)
            if index < len(self._refined):
                hints.append(inputs.scaled(block.after(state)))
        image, hint_at = embedded, dict(zip(self._refined, hints, strict=True))
        for place, refiner in enumerate(refiners):
            image = refiner(image)
            if place in hint_at:
                image = image + hint_at[place]
        return state, image

    def join(self, tokens: Tensor, image: Tensor) -> Tensor:
        """What its layers begin with: of its tokens and of the image's, both with the captions behind them."""
        return _joined(self._layers[0], tokens, image)

    def follow(
        self, layers: slice, x: Tensor, state: Tensor, rope: Tensor, inputs: Inputs, through: Layers
    ) -> tuple[Tensor, Tensor]:
        """x `through` some `layers` of the transformer, with its own results added behind those that they are for."""
        start = layers.start
        for index, place in enumerate(self._places):
            if layers.start <= place < layers.stop:
                x = through(slice(start, place + 1), x)
                block = self._layers[index]
                state = self._step(block, state, rope, inputs, self._after_refiners + index)
                x = x + inputs.scaled(block.after(state))
                start = place + 1
        return (through(slice(start, layers.stop), x) if start < layers.stop else x), state

    def _refine_plainly(self, inputs: Inputs, rope: Tensor) -> Tensor:
        if not self._plain:
            return inputs.tokens
        return Stack(self._plain, self._ops)(inputs.tokens, rope, inputs.modulation[:, : len(self._plain)])

    def _step(self, block: ControlBlock, state: Tensor, rope: Tensor, inputs: Inputs, at: int) -> Tensor:
        return Stack([block.block], self._ops)(state, rope, inputs.modulation[:, at : at + 1])


@dataclass(frozen=True, slots=True)
class Controlled:
    """As the rows of a request have it: tokens [P, D], modulation [steps, blocks, 4, D], strength [1]."""

    net: ControlNet
    tokens: Tensor
    modulation: Tensor
    strength: Tensor

    def inputs(self, step: int) -> list[Tensor]:
        return [self.tokens, self.modulation[step], self.strength]


def load(file: ControlNetFile, device: torch.device, dtype: torch.dtype, arithmetic: Arithmetic = PLAIN) -> ControlNet:
    """Reads and moves a verified file. Raises WeightsError where it has changed since it was verified.

    To a GPU it is copied beside what the step loop launches there, and not in line with it.
    """
    if digest_with(file.config, file.path) != file.digest:
        raise WeightsError(
            f"controlnet {file.name!r}: {file.path} has changed since the start", hint="restart the service"
        )
    with torch.device("meta"):
        model = ZImageControlNetModel.from_config(dict(file.config))
    needed = model.state_dict().keys()
    with own_stream(device), torch.inference_mode():
        state = {key: tensor.to(device, dtype) for key, tensor in load_file(file.path).items() if key in needed}
        model.load_state_dict(state, assign=True)
        del state  # it would keep a second copy of what blocks fuse
        return ControlNet(file, model, arithmetic)


def _joined(block: ControlBlock, tokens: Tensor, image: Tensor) -> Tensor:
    assert block.before is not None
    joined: Tensor = block.before(tokens) + image
    return joined
