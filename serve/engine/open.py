"""From a verified folder to a warm engine: weights onto the device, each once, in the dtype it is good at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import AutoModel

from serve import adapters, controlnets
from serve.adapters import AdapterFile
from serve.controlnets import ControlNetFile
from serve.engine.adapters import Adapters
from serve.engine.controlnet import ControlNet
from serve.engine.controlnet import load as load_controlnet
from serve.engine.decode import Decoder
from serve.engine.embeddings import RememberingEncoder
from serve.engine.engine import Engine
from serve.engine.graphs import Graphs
from serve.engine.lora import Adapter, load
from serve.engine.memory import CudaMeter, Memory
from serve.engine.ops import Arithmetic, Fp8Linear, Linear, Ops, PlainOps
from serve.engine.qwen3 import Qwen3
from serve.engine.schedule import POLICIES
from serve.engine.text import TextEncoder
from serve.engine.warmup import warm_up
from serve.engine.zimage import ZImageTransformer
from serve.errors import ConfigError
from serve.presets.catalog import warm_up_shapes
from serve.settings import Settings
from serve.tokens import PromptTokens
from serve.weights import transformer_of

GRAPH_BYTES = 2 << 30  # of inputs and results of recorded steps: a hundred shapes
GRAPH_SCRATCH = 0.15  # of the GPU's memory, which nothing but recorded work uses
TEXT_MULTIPLE = 32  # prompts' lengths on a GPU
FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class Placement:
    """fp16 is never chosen: w2's peaks overflow it."""

    device: torch.device
    dtype: torch.dtype
    fp8: bool = False

    @property
    def fused(self) -> bool:
        """The Triton kernels are for bf16 on CUDA."""
        return self.device.type == "cuda" and self.dtype == torch.bfloat16 and find_spec("triton") is not None

    @classmethod
    def choose(cls, settings: Settings) -> Placement:
        cuda = torch.cuda.is_available()
        if settings.device == "cuda" and not cuda:
            raise ConfigError(
                "device: cuda, but this process sees no CUDA device",
                hint="give the deployment num_gpus, install a CUDA build of torch, or set device: cpu",
            )
        device = torch.device("cuda" if cuda and settings.device != "cpu" else "cpu")
        if settings.precision == "fp8":
            if device.type != "cuda" or torch.cuda.get_device_capability() < FP8_CAPABILITY:
                raise ConfigError(
                    "precision: fp8 needs a CUDA device of compute capability 8.9 or later (Ada, Hopper, Blackwell)",
                    hint="set precision: auto",
                )
            return cls(device, torch.bfloat16, fp8=True)
        if settings.precision == "auto":
            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return cls(device, torch.bfloat16 if bf16 else torch.float32)
        return cls(device, torch.bfloat16 if settings.precision == "bf16" else torch.float32)

    @classmethod
    def of_text(cls, settings: Settings) -> Placement:
        """A TextEncoder's: prompts are never encoded in FP8."""
        own = settings.text_encoder_device
        device = settings.device if own == "auto" else own
        precision = "auto" if settings.precision == "fp8" else settings.precision
        return cls.choose(settings.model_copy(update={"device": device, "precision": precision}))

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{name} {'fp8' if self.fp8 else str(self.dtype).removeprefix('torch.')}"


def open_text_encoder(settings: Settings, folder: Path, placement: Placement) -> RememberingEncoder:
    torch.set_num_threads(settings.threads)
    model = AutoModel.from_pretrained(folder / "text_encoder", dtype=placement.dtype).to(placement.device).eval()
    model = getattr(model, "model", model)
    if model.config.model_type != "qwen3":
        raise ConfigError(
            f"{folder}: the text encoder is a {model.config.model_type}, and only qwen3 is known",
            hint="use a model in the layout of diffusers' ZImagePipeline",
        )
    with torch.inference_mode():
        forward = Qwen3(model, fastest_ops(placement), graphs_on(placement.device))
    multiple = TEXT_MULTIPLE if placement.device.type == "cuda" else 1
    encoder = TextEncoder(forward, PromptTokens(folder / "tokenizer"), placement.device, multiple)
    return RememberingEncoder(encoder, settings.cache.embedding_bytes)


def open_engine(
    settings: Settings,
    folder: Path,
    placement: Placement,
    report: Callable[[float], None] = lambda _: None,
    set_aside: int = 0,
) -> Engine:
    """Loads, warms up and starts; `report` gets the fraction of the warm-up that is done.

    `set_aside` bytes of the device's memory are left for adapters and ControlNets.
    """
    torch.set_num_threads(settings.threads)
    limit = settings.vram_limit
    graphs = graphs_on(placement.device, limit)
    forget = (lambda: None) if graphs is None else graphs.forget
    meter = CudaMeter(placement.device, limit, forget) if placement.device.type == "cuda" else None
    try:
        transformer, decoder = load_transformer(folder, placement, graphs), load_decoder(folder, placement, graphs)
        if meter is not None:
            meter.free()  # room of matrices that were fused or rounded: no later tensor has their sizes
        memory = Memory(meter, set_aside)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the weights of the denoiser do not fit into the GPU's memory{f', limited to {limit}' if limit else ''}",
            hint="raise vram_limit, or use a larger GPU",
        ) from error
    return start(settings, transformer, decoder, memory, report)


def open_adapters(settings: Settings, folder: Path, placement: Placement) -> Adapters[AdapterFile, Adapter]:
    """Verified, none of them loaded yet. Raises WeightsError, and ConfigError where one is over the bytes for all."""
    return Adapters(
        files=adapters.FILES.open(settings, folder),
        load=partial(load, device=placement.device, dtype=placement.dtype),
        budget=settings.adapter_bytes,
        item_bytes=placement.dtype.itemsize,
        model=settings.served_model_name,
    )


def open_controlnets(settings: Settings, folder: Path, placement: Placement) -> Adapters[ControlNetFile, ControlNet]:
    """As adapters are. They compute in the placement's dtype also where the model does in FP8."""
    plain = Arithmetic(fastest_ops(placement, transformer_of(folder).head_dim), Linear)
    return Adapters(
        files=controlnets.FILES.open(settings, folder),
        load=partial(load_controlnet, device=placement.device, dtype=placement.dtype, arithmetic=plain),
        budget=settings.controlnet_bytes,
        item_bytes=placement.dtype.itemsize,
        kind="controlnet",
        model=settings.served_model_name,
    )


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


def load_transformer(folder: Path, placement: Placement, graphs: Graphs | None = None) -> ZImageTransformer:
    model = ZImageTransformer2DModel.from_pretrained(folder / "transformer", dtype=placement.dtype)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    return take_over(model.to(placement.device).eval(), scheduler, placement, graphs)


@torch.inference_mode()
def take_over(model: Any, scheduler: Any, placement: Placement, graphs: Graphs | None = None) -> ZImageTransformer:
    """A loaded diffusers transformer, with the fastest arithmetic of its device."""
    plain = Arithmetic(fastest_ops(placement, model.config.dim // model.config.n_heads), Linear)
    layers = plain
    if placement.fp8:
        layers = Arithmetic(fastest_ops(placement, quantize=True), Fp8Linear)
    return ZImageTransformer(model, scheduler, layers, plain, graphs)


def load_decoder(folder: Path, placement: Placement, graphs: Graphs | None = None) -> Decoder:
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=placement.dtype).to(placement.device).eval()
    return decoder_of(vae, placement, graphs)


def decoder_of(vae: Any, placement: Placement, graphs: Graphs | None = None) -> Decoder:
    """A loaded diffusers VAE, with the fastest arithmetic of its device."""
    if placement.fused:
        from serve.engine.vae import FusedVaeDecoder  # noqa: PLC0415  # Triton comes with CUDA builds of torch

        if FusedVaeDecoder.supports(vae):
            return Decoder(vae, FusedVaeDecoder(vae.decoder), graphs)
    if placement.device.type == "cpu":  # faster there; slower on a GPU without the fused kernels
        vae = vae.to(memory_format=torch.channels_last)
    return Decoder(vae, graphs=graphs)


def graphs_on(device: torch.device, limit: int | None = None) -> Graphs | None:
    if device.type != "cuda":
        return None
    memory = min(limit or sys.maxsize, torch.cuda.get_device_properties(device).total_memory)
    return Graphs(device, GRAPH_BYTES, int(GRAPH_SCRATCH * memory))


def fastest_ops(placement: Placement, head_dim: int = 128, *, quantize: bool = False) -> Ops:
    if not placement.fused or head_dim & (head_dim - 1):
        return PlainOps()
    from serve.engine.kernels import FusedOps  # noqa: PLC0415  # Triton comes with CUDA builds of torch

    return FusedOps(quantize)
