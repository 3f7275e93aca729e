"""The architecture served here: which classes a model folder names, and what their configs say of its tensors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

PIPELINE = "ZImagePipeline"
CLASSES = {
    "transformer": ("ZImageTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}

Shapes = dict[str, list[int]]


class _Config(BaseModel):
    """The keys of a component's config.json that decide whether it can be served; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def problem(self) -> str | None:
        """Why a config that parses is refused all the same."""
        return None


class TransformerConfig(_Config):
    all_patch_size: tuple[int, ...]
    all_f_patch_size: tuple[int, ...]
    axes_dims: tuple[int, ...]
    cap_feat_dim: int
    dim: int
    in_channels: int
    n_heads: int = Field(ge=1)
    n_layers: int = Field(ge=1)
    n_refiner_layers: int = Field(ge=1)
    siglip_feat_dim: int | None = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def problem(self) -> str | None:
        if (2, 1) not in zip(self.all_patch_size, self.all_f_patch_size, strict=False):
            return f"all_patch_size {list(self.all_patch_size)} lacks the patch size 2 that {PIPELINE} uses"
        if self.siglip_feat_dim is not None:
            return "siglip_feat_dim is set: this is the transformer of an Omni model"
        if self.dim // self.n_heads != sum(self.axes_dims):
            return f"dim {self.dim} / n_heads {self.n_heads} is not the sum of axes_dims {list(self.axes_dims)}"
        return None

    def shapes(self) -> Shapes:
        dim, patch = self.dim, 4 * self.in_channels
        shapes = {
            "all_x_embedder.2-1.weight": [dim, patch],
            "all_final_layer.2-1.linear.weight": [patch, dim],
            "cap_embedder.1.weight": [dim, self.cap_feat_dim],
            "cap_pad_token": [1, dim],
            "x_pad_token": [1, dim],
        }
        blocks = [f"layers.{i}" for i in range(self.n_layers)]
        blocks += [f"{kind}.{i}" for kind in ("noise_refiner", "context_refiner") for i in range(self.n_refiner_layers)]
        for block in blocks:
            shapes |= {f"{block}.attention.to_{x}.weight": [dim, dim] for x in ("q", "k", "v", "out.0")}
            shapes |= {f"{block}.feed_forward.w1.weight": [int(dim / 3 * 8), dim]}
        return shapes


class VaeConfig(_Config):
    block_out_channels: tuple[int, ...] = Field(min_length=1)
    latent_channels: int
    out_channels: int
    scaling_factor: float
    shift_factor: float

    def problem(self) -> str | None:
        scale = 2 ** (len(self.block_out_channels) - 1)
        return None if scale == 8 else f"block_out_channels make latents 1/{scale} of the picture's side, expected 1/8"

    def shapes(self) -> Shapes:
        first, last = self.block_out_channels[0], self.block_out_channels[-1]
        return {
            "decoder.conv_in.weight": [last, self.latent_channels, 3, 3],
            "decoder.conv_out.weight": [self.out_channels, first, 3, 3],
        }


class TextEncoderConfig(_Config):
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=2, description="the last but one layer's output is used")
    vocab_size: int
    head_dim: int | None = None

    def shapes(self) -> Shapes:
        heads = self.num_attention_heads * (self.head_dim or self.hidden_size // self.num_attention_heads)
        shapes = {"embed_tokens.weight": [self.vocab_size, self.hidden_size]}
        for i in range(self.num_hidden_layers):
            shapes[f"layers.{i}.self_attn.q_proj.weight"] = [heads, self.hidden_size]
            shapes[f"layers.{i}.mlp.down_proj.weight"] = [self.hidden_size, self.intermediate_size]
        return shapes


class SchedulerConfig(_Config):
    shift: float = Field(gt=0)
    stochastic_sampling: bool = False
    invert_sigmas: bool = False

    def problem(self) -> str | None:
        on = [key for key in ("stochastic_sampling", "invert_sigmas") if getattr(self, key)]
        return f"{on[0]} is on, which is not served" if on else None
