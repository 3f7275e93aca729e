"""The denoising forward of Z-Image over diffusers' weights; what does not depend on the step is hoisted out.

Same mathematics as `diffusers.ZImageTransformer2DModel` (0.42) in its basic mode: latents stay in token space, the
caption is refined once per request, the adaLN outputs are a table over the schedule. Rows of one forward share one
shape, so attention never needs a mask, and a row's result does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serve.engine.blocks import Block, Stack
from serve.engine.controlnet import Controlled, ControlNet, Inputs
from serve.engine.graphs import Graphs, Stage, run_stages
from serve.engine.lora import Adapter, Extension, extended, terms_of
from serve.engine.ops import PLAIN, Arithmetic

SEQUENCE_MULTIPLE = 32  # captions and images are padded to this with learned tokens that attend and are attended
PATCH = 2


@dataclass(frozen=True, slots=True)
class Caption:
    """A prompt as the denoiser needs it, refined once per request.

    tokens [T, D] with T a multiple of 32.
    """

    tokens: Tensor

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one request and what depends only on them.

    sigmas: steps + 1 floats, the last one the end; modulation [steps, blocks, 4, D]; final_scale [steps, D].
    """

    sigmas: tuple[float, ...]
    modulation: Tensor
    final_scale: Tensor

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(slots=True)
class Row:
    """One row of a forward: latents [N, 64] fp32 in token space at step `step` of its schedule."""

    latents: Tensor
    caption: Caption
    schedule: Schedule
    step: int
    height: int
    width: int
    extension: Extension | None = None
    control: Controlled | None = None


def transferred(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU through page-locked memory, so that the caller need not wait for what it does before."""
    locked = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory().to(device, non_blocking=True) if locked else tensor.to(device)


def pad_length(length: int) -> int:
    return -(-length // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def patchify(latents: Tensor) -> Tensor:
    """[C, h, w] -> [h/2 * w/2, 4 * C], channels last within a patch."""
    channels, height, width = latents.shape
    patches = latents.view(channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(1, 3, 2, 4, 0).reshape(-1, PATCH * PATCH * channels)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """[h/2 * w/2, 4 * C] -> [C, h, w]; height and width are those of the picture, in pixels."""
    rows, columns = height // 16, width // 16
    patches = tokens.view(rows, columns, PATCH, PATCH, -1)
    return patches.permute(4, 0, 2, 1, 3).reshape(-1, rows * PATCH, columns * PATCH)


class ZImageTransformer:
    """Takes over the weights of a loaded `ZImageTransformer2DModel`, which must not be used afterwards.

    `layers` is how the blocks of a step compute, `caption` how the refiner of captions does. With `graphs` a shape's
    step is recorded when it comes again.
    """

    def __init__(
        self,
        model: Any,
        scheduler: Any,
        layers: Arithmetic = PLAIN,
        caption: Arithmetic = PLAIN,
        graphs: Graphs | None = None,
    ) -> None:
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.graphs = graphs
        self._scheduler_class, self._scheduler_config = type(scheduler), scheduler.config
        self._t_embedder, self._t_scale = model.t_embedder, model.t_scale
        self._x_embedder, self._x_pad = model.all_x_embedder["2-1"], model.x_pad_token
        self._caption_embedder, self._caption_pad = model.cap_embedder, model.cap_pad_token
        self._frequencies = model.rope_embedder.precompute_freqs_cis(
            model.axes_dims, model.axes_lens, theta=model.rope_theta
        )
        self._final = model.all_final_layer["2-1"]
        self._noise_refiner = [Block(block, layers) for block in model.noise_refiner]
        self._layers = [Block(block, layers) for block in model.layers]
        self._ops = layers.ops
        self._refine_caption = Stack([Block(block, caption) for block in model.context_refiner], caption.ops)
        # after the blocks have let go of what they fuse: else all of it would stay in memory twice
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self.channels: int = model.in_channels
        self.embedding_size: int = model.cap_embedder[1].in_features
        self._schedule = lru_cache(maxsize=64)(self._make_schedule)
        self._caption_rope = lru_cache(maxsize=64)(self._make_caption_rope)
        self._ropes = lru_cache(maxsize=64)(self._make_ropes)

    def noise(self, seed: int, height: int, width: int) -> Tensor:
        """Initial latents [N, 4 * C] fp32, drawn on the CPU: the same picture on every device and batch position."""
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.channels, height // 8, width // 8)
        return transferred(patchify(torch.randn(shape, generator=generator, dtype=torch.float32)[0]), self.device)

    def extend(self, adapter: Adapter, scale: float) -> Extension:
        """What captions, schedules and rows of a request with this adapter are made with."""
        return Extension.of(adapter, scale, self.device)

    @torch.inference_mode()
    def caption(self, embeddings: Tensor, extension: Extension | None = None) -> Caption:
        """embeddings [L, C] from the text encoder -> refined caption; pads are learned tokens, not masked ones."""
        length, total = len(embeddings), pad_length(len(embeddings))
        if self.graphs is None or extension is not None:
            return self._refine(embeddings, extension)
        real = torch.arange(total) < length
        rows = [F.pad(embeddings.to(self.dtype), (0, 0, 0, total - length)), real]
        inputs = [[transferred(row, self.device)] for row in rows]
        (tokens,) = self.graphs.run(("caption", total), inputs, [partial(self._refine_padded, total)])
        return Caption(tokens[0].clone())

    def _refine(self, embeddings: Tensor, extension: Extension | None) -> Caption:
        length, total = len(embeddings), pad_length(len(embeddings))
        with extended(self._modules, extension):
            tokens = self._caption_embedder(embeddings.to(self.device, self.dtype))
        if total > length:
            tokens = torch.cat([tokens, self._caption_pad.expand(total - length, -1)])
        terms = terms_of(extension, "context_refiner", range(len(self._refine_caption.blocks)))
        return Caption(self._refine_caption(tokens[None], self._caption_rope(total), None, terms)[0])

    def _refine_padded(self, total: int, inputs: Sequence[Tensor], _: Tensor | None) -> Tensor:
        """inputs: embeddings [1, L, C] with whatever behind the real ones, and [1, L] that says which these are."""
        tokens = torch.where(inputs[1].unsqueeze(-1), self._caption_embedder(inputs[0]), self._caption_pad)
        return self._refine_caption(tokens, self._caption_rope(total), None)

    def schedule(self, steps: int, image_tokens: int, extension: Extension | None = None) -> Schedule:
        """Sigmas by the model's own scheduler; `image_tokens` matters only where its shift depends on resolution."""
        tokens = image_tokens if self._scheduler_config.use_dynamic_shifting else 0
        if extension is None or not extension.adapter.layers:
            return self._schedule(steps, tokens)
        key = (steps, tokens, extension.strength.item())
        remembered = extension.adapter.schedules
        if key not in remembered:
            remembered[key] = self._make_schedule(steps, tokens, extension)
        schedule: Schedule = remembered[key]
        return schedule

    @torch.inference_mode()
    def control(
        self, net: ControlNet, latents: Tensor, scale: float, steps: int, extension: Extension | None = None
    ) -> Controlled:
        """What rows need of a control picture, as latents [C, h, w]."""
        more = latents.new_zeros(net.channels - len(latents), *latents.shape[1:])  # what unions have for inpainting
        tokens = net.embed(patchify(torch.cat([latents, more])).to(self.device, self.dtype))
        padding = self._x_pad.expand(pad_length(len(tokens)) - len(tokens), -1)
        image_tokens = len(tokens) if self._scheduler_config.use_dynamic_shifting else 0
        key = (steps, image_tokens, None if extension is None else (extension.adapter, extension.strength.item()))
        if key not in net.schedules:
            _, embeddings = self._times(steps, image_tokens, extension)
            net.schedules[key] = torch.stack([_modulation(net.modulated, embedding) for embedding in embeddings])
        strength = torch.tensor([scale], dtype=torch.float32, device=self.device)
        return Controlled(net, torch.cat([tokens, padding]), net.schedules[key], strength)

    def velocity(self, rows: list[Row]) -> Tensor:
        """One forward over rows of one shape. Returns [B, N, 4 * C] fp32, signed so that x += (σ' - σ) · v."""
        *_, velocity = self.segments(rows, 1)
        return velocity

    @torch.inference_mode()
    def segments(self, rows: list[Row], parts: int) -> Iterator[Tensor]:
        """The same forward in `parts` of about equal time.

        Yields after each part is launched, not finished; what it yields last is the velocity. Between two parts any
        other forward may run, and the rest may be left undone.
        """
        first, extension, control = rows[0], rows[0].extension, rows[0].control
        net = None if control is None else control.net
        inputs = [
            [row.latents for row in rows],
            [row.caption.tokens for row in rows],
            [row.schedule.modulation[row.step] for row in rows],
            [row.schedule.final_scale[row.step] for row in rows],
        ]
        if extension is not None:
            inputs.append([row.extension.strength for row in rows if row.extension])
        if net is not None:
            inputs += map(list, zip(*(row.control.inputs(row.step) for row in rows if row.control), strict=True))
        adapter = None if extension is None else extension.adapter
        stages = self._stages(first.caption.length, first.height // 16, first.width // 16, parts, adapter, net)
        key = ("step", first.height, first.width, len(rows), first.caption.length, parts, adapter, net)
        if self.graphs is not None:
            self.graphs.drop(_retired)
        results = run_stages(inputs, stages) if self.graphs is None else self.graphs.run(key, inputs, stages)
        for index, result in enumerate(results, 1):
            yield result if index < len(stages) else result.clone()

    def _stages(
        self,
        caption_length: int,
        rows: int,
        columns: int,
        parts: int,
        adapter: Adapter | None,
        net: ControlNet | None,
    ) -> list[Stage]:
        part = partial(self._part, self._ropes(caption_length, rows, columns), rows * columns, adapter, net)
        cuts = [len(self._layers) * cut // parts for cut in range(parts + 1)]
        return [partial(part, slice(start, stop)) for start, stop in pairwise(cuts)]

    def _part(
        self,
        ropes: tuple[Tensor, Tensor],
        image_tokens: int,
        adapter: Adapter | None,
        net: ControlNet | None,
        layers: slice,
        inputs: Sequence[Tensor],
        x: Tensor | None,
    ) -> Tensor:
        """Some of the layers, with what precedes the first and what follows the last.

        With a ControlNet what lies between two parts is x and the control's own tokens, [2, B, S, D].
        """
        latents, captions, modulation, final_scale, *more = inputs
        extension = Extension(adapter, more.pop(0).flatten()) if adapter else None
        controls = Inputs(more[0], more[1], more[2].flatten()) if net else None
        if x is None:
            x = self._beginning(ropes[0], image_tokens, extension, latents, captions, modulation, net, controls)
        through = partial(self._through, ropes[1], modulation[:, len(self._noise_refiner) :], extension)
        if net is not None and controls is not None:
            x = torch.stack(net.follow(layers, x[0], x[1], ropes[1], controls, through))
        elif layers.start < layers.stop:
            x = through(layers, x)
        if layers.stop < len(self._layers):
            return x
        x = x if net is None else x[0]
        with extended(self._modules, extension):
            output: Tensor = self._final.linear(self._final.norm_final(x[:, :image_tokens]) * final_scale.unsqueeze(1))
        return -output.float()

    def _beginning(
        self,
        rope: Tensor,
        image_tokens: int,
        extension: Extension | None,
        latents: Tensor,
        captions: Tensor,
        modulation: Tensor,
        net: ControlNet | None,
        controls: Inputs | None,
    ) -> Tensor:
        """What the layers begin with, [B, S, D], or [2, B, S, D] with a ControlNet."""
        with extended(self._modules, extension):
            embedded: Tensor = self._x_embedder(latents.to(self.dtype))
        padding = pad_length(image_tokens) - image_tokens
        if padding:
            embedded = torch.cat([embedded, self._x_pad.expand(len(embedded), padding, -1)], 1)
        refine = partial(self._refined, rope, modulation, extension)
        everything = slice(0, len(self._noise_refiner))
        refined = refine(everything, embedded)
        if net is None or controls is None:
            return torch.cat([refined, captions], 1)
        each = [partial(refine, slice(index, index + 1)) for index in range(everything.stop)]
        tokens, image = net.begin(controls, rope, embedded, refined, each)
        state = net.join(torch.cat([tokens, captions], 1), torch.cat([image, captions], 1))
        return torch.stack((torch.cat([refined, captions], 1), state))

    def _refined(
        self, rope: Tensor, modulation: Tensor, extension: Extension | None, blocks: slice, x: Tensor
    ) -> Tensor:
        terms = terms_of(extension, "noise_refiner", range(blocks.start, blocks.stop))
        return Stack(self._noise_refiner[blocks], self._ops)(x, rope, modulation[:, blocks], terms)

    def _through(
        self, rope: Tensor, modulation: Tensor, extension: Extension | None, layers: slice, x: Tensor
    ) -> Tensor:
        terms = terms_of(extension, "layers", range(layers.start, layers.stop))
        return Stack(self._layers[layers], self._ops)(x, rope, modulation[:, layers], terms)

    def _make_schedule(self, steps: int, image_tokens: int, extension: Extension | None = None) -> Schedule:
        sigmas, embeddings = self._times(steps, image_tokens, extension)
        with torch.inference_mode(), extended(self._modules, extension):
            modulation = [_modulation([*self._noise_refiner, *self._layers], embedding) for embedding in embeddings]
            final_scale = [1.0 + self._final.adaLN_modulation(embedding)[0] for embedding in embeddings]
        return Schedule(sigmas, torch.stack(modulation), torch.stack(final_scale))

    @torch.inference_mode()
    def _times(
        self, steps: int, image_tokens: int, extension: Extension | None
    ) -> tuple[tuple[float, ...], list[Tensor]]:
        """The sigmas of a schedule, and the embedding [1, C] of each step's time."""
        scheduler = self._scheduler_class.from_config(self._scheduler_config)
        scheduler.set_timesteps(
            sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=self._shift(image_tokens, scheduler.config)
        )
        times = [(1000 - timestep.expand(1)) / 1000 for timestep in scheduler.timesteps]
        with extended(self._modules, extension):
            embeddings = [self._t_embedder((time * self._t_scale).to(self.device)).to(self.dtype) for time in times]
        return tuple(scheduler.sigmas.tolist()), embeddings

    @staticmethod
    def _shift(image_tokens: int, config: Any) -> float:
        """diffusers' `calculate_shift`: linear between the base and the maximal image length."""
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (image_tokens - config.base_image_seq_len))

    def _make_caption_rope(self, length: int) -> Tensor:
        return self._rope([(1 + i, 0, 0) for i in range(length)])

    def _make_ropes(self, caption_length: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Of the image alone and with its caption. Image positions start behind the padded caption; pads are the
        origin."""
        positions = [(caption_length + 1, row, column) for row in range(rows) for column in range(columns)]
        image = self._rope(positions + [(0, 0, 0)] * (pad_length(len(positions)) - len(positions)))
        return image, torch.cat([image, self._caption_rope(caption_length)])

    def _rope(self, positions: list[tuple[int, int, int]]) -> Tensor:
        index = torch.tensor(positions)
        angles = torch.cat([axis[index[:, i]] for i, axis in enumerate(self._frequencies)], -1)
        return torch.view_as_real(angles).to(self.device)


def _modulation(blocks: Sequence[Block], embedding: Tensor) -> Tensor:
    """[blocks, 4, D] at a time's embedding [1, C]."""
    return torch.stack([block.modulate(embedding) for block in blocks])


def _retired(key: Any) -> bool:
    """Of a recorded step: it is of an adapter or a ControlNet that is gone."""
    return any(isinstance(part, Adapter | ControlNet) and part.retired for part in key)
