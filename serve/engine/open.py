"""From a verified folder to a warm engine: weights onto the device, each once, in the dtype it is good at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import AutoModel

from serve.engine.decode import Decoder
from serve.engine.embeddings import RememberingEncoder
from serve.engine.engine import Engine
from serve.engine.memory import CudaMeter, Memory
from serve.engine.schedule import POLICIES
from serve.engine.text import TextEncoder
from serve.engine.warmup import warm_up
from serve.engine.zimage import ZImageTransformer
from serve.errors import ConfigError
from serve.presets.catalog import warm_up_shapes
from serve.settings import Settings
from serve.tokens import PromptTokens


@dataclass(frozen=True, slots=True)
class Placement:
    """fp16 is never chosen: w2's peaks overflow it."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, settings: Settings) -> Placement:
        cuda = torch.cuda.is_available()
        if settings.device == "cuda" and not cuda:
            raise ConfigError(
                "device: cuda, but this process sees no CUDA device",
                hint="give the deployment num_gpus, install a CUDA build of torch, or set device: cpu",
            )
        device = torch.device("cuda" if cuda and settings.device != "cpu" else "cpu")
        if settings.precision == "auto":
            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return cls(device, torch.bfloat16 if bf16 else torch.float32)
        return cls(device, torch.bfloat16 if settings.precision == "bf16" else torch.float32)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{name} {str(self.dtype).removeprefix('torch.')}"


def open_text_encoder(settings: Settings, folder: Path, placement: Placement) -> RememberingEncoder:
    torch.set_num_threads(settings.threads)
    model = AutoModel.from_pretrained(folder / "text_encoder", dtype=placement.dtype).to(placement.device).eval()
    return RememberingEncoder(TextEncoder(model, PromptTokens(folder / "tokenizer")), settings.cache.embedding_bytes)


def open_engine(
    settings: Settings, folder: Path, placement: Placement, report: Callable[[float], None] = lambda _: None
) -> Engine:
    """Loads, warms up and starts; `report` gets the fraction of the warm-up that is done."""
    torch.set_num_threads(settings.threads)
    limit = settings.vram_limit
    meter = CudaMeter(placement.device, limit) if placement.device.type == "cuda" else None
    try:
        transformer, decoder = load_transformer(folder, placement), load_decoder(folder, placement)
        memory = Memory(meter)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the weights of the denoiser do not fit into the GPU's memory{f', limited to {limit}' if limit else ''}",
            hint="raise vram_limit, or use a larger GPU",
        ) from error
    return start(settings, transformer, decoder, memory, report)


def start(
    settings: Settings,
    transformer: ZImageTransformer,
    decoder: Decoder,
    memory: Memory,
    report: Callable[[float], None] = lambda _: None,
) -> Engine:
    scheduler = settings.scheduler
    squares = {(side, side) for side in settings.warmup_px}
    shapes = sorted(squares | set(warm_up_shapes(settings)), key=lambda shape: (shape[0] * shape[1], shape))
    times = warm_up(transformer, decoder, memory, shapes, scheduler.max_batch, report)
    engine = Engine(
        transformer,
        decoder,
        POLICIES[scheduler.policy](times, scheduler.max_batch),
        times,
        memory,
        split_s=scheduler.split_step_ms / 1e3,
        decode_batch=scheduler.decode_batch,
        model=settings.served_model_name,
    )
    engine.start()
    return engine


def load_transformer(folder: Path, placement: Placement) -> ZImageTransformer:
    model = ZImageTransformer2DModel.from_pretrained(folder / "transformer", dtype=placement.dtype)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    with torch.inference_mode():
        return ZImageTransformer(model.to(placement.device).eval(), scheduler)


def load_decoder(folder: Path, placement: Placement) -> Decoder:
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=placement.dtype).to(placement.device).eval()
    if placement.device.type == "cpu":  # faster there; slower on a GPU as long as it is not compiled
        vae = vae.to(memory_format=torch.channels_last)
    return Decoder(vae)
