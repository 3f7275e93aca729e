"""Small models of the real one's kind, with heads of the real width, and how far two results are from each other."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=3.0)
EMBEDDING = 64
FP32, BF16 = torch.float32, torch.bfloat16


def transformer() -> Any:
    return _randomized(
        ZImageTransformer2DModel(
            dim=384, n_layers=6, n_heads=3, n_kv_heads=3, cap_feat_dim=EMBEDDING, axes_lens=[1024, 512, 512]
        )
    )


def text_encoder() -> Any:
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
    )
    return _randomized(Qwen3Model(config))


def vae() -> Any:
    return _randomized(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(64, 128, 256, 256),
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        deviation=0.05,
    )


def _randomized(model: nn.Module, deviation: float = 0.06) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, deviation, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(1.0, 0.1, generator=generator)
            else:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model.to("cuda", FP32).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda")


def apart(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖"""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
