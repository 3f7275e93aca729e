"""Latents to pixels: the VAE, and a linear map fitted to it for previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from serve.engine.graphs import Graphs, run_stages
from serve.engine.pixels import Pixels
from serve.engine.reference import Encoder

GRAPHED_UP_TO = 16 * 128 * 128  # numbers in the latents, one 1024² picture; above it launching costs nothing
FIT_IMAGES, FIT_SIDE_PX, FIT_CONTRAST, FIT_SEED = 4, 128, 3.0, 20260101


class Decoder:
    """`decoder` computes what `vae.decode` does, which is the default; with `graphs` a shape is recorded when it comes
    again."""

    def __init__(
        self, vae: Any, decoder: Callable[[Tensor], Tensor] | None = None, graphs: Graphs | None = None
    ) -> None:
        self._vae, self._graphs = vae, graphs
        self.encoder = Encoder(vae)
        self._decoder = decoder or (lambda latents: vae.decode(latents, return_dict=False)[0])
        self._scale, self._shift = vae.config.scaling_factor, vae.config.shift_factor
        self._preview = self._fit_preview()

    def decode(self, latents: list[Tensor]) -> list[Pixels]:
        """Latents [C, h, w] fp32 of one shape -> RGB [8h, 8w, 3], rounded as diffusers does."""
        return list(_arrived(self.launch(latents)))

    @torch.inference_mode()
    def launch(self, latents: list[Tensor]) -> Tensor:
        """The same [B, 8h, 8w, 3], on its way to host memory: there when the current stream is done."""
        inputs = [latents]
        stages = [self._images]
        key = ("decode", len(latents), *latents[0].shape)
        graphs = self._graphs if len(latents) * latents[0].numel() <= GRAPHED_UP_TO else None
        *_, images = run_stages(inputs, stages) if graphs is None else graphs.run(key, inputs, stages)
        return _to_host(images)

    def _images(self, inputs: Sequence[Tensor], _: Tensor | None) -> Tensor:
        batch = inputs[0].to(self._vae.dtype) / self._scale + self._shift
        return _to_uint8(self._decoder(batch).float() / 2 + 0.5)

    def preview(self, latents: Tensor) -> Pixels:
        """An estimate of the final latents [C, h, w] -> RGB [h, w, 3]: blurred, for the price of a matrix product."""
        return _arrived(self.launch_preview(latents))

    @torch.inference_mode()
    def launch_preview(self, latents: Tensor) -> Tensor:
        """The same on its way to host memory."""
        values = latents.permute(1, 2, 0).to(self._preview.device)
        return _to_host(_to_uint8((_with_one(values) @ self._preview).permute(2, 0, 1)[None]))[0]

    @torch.inference_mode()
    def _fit_preview(self) -> Tensor:
        """Least squares [C + 1, 3] between the VAE's own latents of synthetic pictures and their mean colours."""
        parameters = next(self._vae.parameters())
        images = _colour_fields().to(parameters.device)
        encoded = self._vae.encode((images * 2 - 1).to(parameters.dtype)).latent_dist.mode()
        latents = (encoded.float() - self._shift) * self._scale
        colours = F.avg_pool2d(images, FIT_SIDE_PX // latents.shape[-1])
        features, targets = (x.permute(0, 2, 3, 1).flatten(0, 2) for x in (latents, colours))
        solution: Tensor = torch.linalg.lstsq(_with_one(features).cpu(), targets.cpu()).solution
        return solution.to(latents.device)


def _colour_fields() -> Tensor:
    """Flat, soft and hard-edged colours at five scales, saturated as pictures are: [N, 3, side, side] in 0..1."""
    generator = torch.Generator().manual_seed(FIT_SEED)
    fields = [
        F.interpolate(torch.rand((FIT_IMAGES, 3, cells, cells), generator=generator), FIT_SIDE_PX, mode=mode)
        for cells in (1, 2, 4, 8, 16)
        for mode in ("nearest", "bicubic")
    ]
    return (0.5 + FIT_CONTRAST * (torch.cat(fields) - 0.5)).clamp(0, 1)


def _with_one(values: Tensor) -> Tensor:
    return torch.cat([values, torch.ones_like(values[..., :1])], -1)


def _to_uint8(images: Tensor) -> Tensor:
    """[B, 3, H, W] in 0..1 -> [B, H, W, 3], rounded on the device so that only bytes travel."""
    return images.clamp(0, 1).permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).contiguous()


def _to_host(images: Tensor) -> Tensor:
    """Through page-locked memory, which PyTorch keeps for the next picture."""
    if images.device.type == "cpu":
        return images
    host = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    return host.copy_(images, non_blocking=True)


def _arrived(pixels: Tensor) -> Pixels:
    if pixels.is_pinned():
        torch.cuda.current_stream().synchronize()
    return pixels.numpy()
