"""The three networks, in their small size, as diffusers and transformers define them, and how they begin."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3Model

LATENT_CHANNELS = 16
TEXT_WIDTH = 128
PATCH = "2-1"  # the key of the only patch size, 2 x 2 pixels in 1 frame

VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 128,
    "act_fn": "silu",
    "force_upcast": False,
}

TRANSFORMER: dict[str, Any] = {
    "dim": 192,
    "n_layers": 6,
    "n_refiner_layers": 1,
    "n_heads": 6,
    "n_kv_heads": 6,
    "cap_feat_dim": TEXT_WIDTH,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1024, 512, 512],
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "qk_norm": True,
    "norm_eps": 1e-5,
    "in_channels": LATENT_CHANNELS,
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
}

# Z-Image reads hidden_states[-2], so the last of the three layers is never used and its weights are zero.
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "use_cache": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "initializer_range": 0.05,
    "bos_token_id": None,
}


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(**VAE)


def build_text_encoder(vocabulary: int, end_token: int, pad_token: int) -> Qwen3Model:
    config = Qwen3Config(**TEXT_ENCODER, vocab_size=vocabulary, eos_token_id=end_token, pad_token_id=pad_token)
    model = Qwen3Model(config)
    with torch.no_grad():
        for parameter in model.layers[-1].parameters():
            parameter.zero_()
    return model


def build_transformer() -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(**TRANSFORMER)
    for block in [*model.noise_refiner, *model.layers, *model.context_refiner]:
        _start_block(block)
    final = model.all_final_layer[PATCH]
    for layer in (final.linear, final.adaLN_modulation[1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(model.x_pad_token, std=0.02)
    nn.init.normal_(model.cap_pad_token, std=0.02)
    return model


def _start_block(block: Any) -> None:
    """Matrices keep the variance of their input; the gates of both branches begin a little open."""
    for parameter in [*block.attention.parameters(), *block.feed_forward.parameters()]:
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    if block.modulation:
        modulation = block.adaLN_modulation[0]
        nn.init.normal_(modulation.weight, std=0.01)
        with torch.no_grad():
            _, gate_attention, _, gate_feed_forward = modulation.bias.zero_().chunk(4)
            gate_attention.fill_(0.3)
            gate_feed_forward.fill_(0.3)
