"""The decoder of diffusers' AutoencoderKL in bf16 on CUDA: channels last, normalisation and bias fused.

Same modules and roundings as diffusers; what is different is that the channels of a pixel lie together, as cuDNN's
convolutions want them, and that the passes over memory between two convolutions are one or two instead of six.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serve.engine.pixel_kernels import add_biased, group_norm

ATTENTION_BYTES = 1 << 29  # of scores at once


class FusedVaeDecoder:
    """Takes over `vae.decoder`; `supports` says whether this is a decoder of the kind that it knows."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder.to(memory_format=torch.channels_last)

    @staticmethod
    def supports(vae: Any) -> bool:
        blocks = set(vae.config.up_block_types) == {"UpDecoderBlock2D"}
        widths = all(channels & (channels - 1) == 0 for channels in vae.config.block_out_channels)
        return blocks and widths and vae.config.act_fn == "silu" and not vae.config.use_post_quant_conv

    def __call__(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, 8h, 8w], channels last in memory."""
        decoder = self._decoder
        x = decoder.conv_in(latents.contiguous(memory_format=torch.channels_last))
        x = self._resnet(x, decoder.mid_block.resnets[0])
        for attention, resnet in zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=True):
            if attention is not None:
                x = self._attend(x, attention)
            x = self._resnet(x, resnet)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = self._resnet(x, resnet)
            for upsampler in block.upsamplers or ():
                x = upsampler.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        output: Tensor = decoder.conv_out(group_norm(x, decoder.conv_norm_out, silu=True))
        return output

    @staticmethod
    def _resnet(x: Tensor, resnet: Any) -> Tensor:
        hidden = _conv(group_norm(x, resnet.norm1, silu=True), resnet.conv1)
        hidden = _conv(group_norm(hidden, resnet.norm2, silu=True, bias=resnet.conv1.bias), resnet.conv2)
        if resnet.conv_shortcut is not None:
            x = resnet.conv_shortcut(x)
        return add_biased(x, hidden, resnet.conv2.bias)

    @staticmethod
    def _attend(x: Tensor, attention: Any) -> Tensor:
        """One head over all pixels, too wide for fused attention, so in two matrix products."""
        batch, channels, height, width = x.shape
        hidden = group_norm(x, attention.group_norm, silu=False).permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = attention.to_q(hidden), attention.to_k(hidden), attention.to_v(hidden)
        rows = max(1, ATTENTION_BYTES // (batch * height * width * x.element_size()))
        mixed = [
            torch.softmax(part @ key.transpose(1, 2) * channels**-0.5, -1) @ value for part in query.split(rows, 1)
        ]
        out = attention.to_out[0](torch.cat(mixed, 1))
        attended: Tensor = out.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + attended


def _conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Without its bias."""
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
