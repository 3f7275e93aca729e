"""One training run from the data folder to a measured model: VAE, latents, transformer, export, evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from training.batches import BatchSampler
from training.checks import Score
from training.config import Config
from training.data import vocabulary
from training.data.blocks import SceneFactory
from training.data.chat import END_TOKEN, PAD_TOKEN, PromptEncoder
from training.data.textures import load_textures
from training.devices import best_device, prepare
from training.evaluate import evaluate, score_row, table
from training.export import export
from training.latents import cache_latents
from training.models import build_text_encoder, build_transformer, build_vae
from training.progress import Clock, disable_progress_bars
from training.tokenizer import make_tokenizer
from training.train_transformer import Predictor, train_transformer
from training.train_vae import train_vae


@dataclass(frozen=True, slots=True)
class RunResult:
    """What results.json holds; `loss` is that of the transformer at the end, `model_bytes` the whole folder."""

    device: str
    torch: str
    minutes: float
    seconds: float
    vae_steps: int
    transformer_steps: int
    loss: float
    model_bytes: int
    scores: list[Score]


def train(config: Config, data: Path, out: Path, started: float) -> RunResult:
    """Writes the model to `out`/model. `started` is the `time.monotonic()` that the budget counts from."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, model = out / "tokenizer", out / "model"
    clock = Clock(started, out / "log.txt")
    device, known = best_device(), vocabulary.load(data)
    prepare(device)
    disable_progress_bars()
    torch.manual_seed(config.seed + 1)
    clock.log(f"{len(known)} objects, torch {torch.__version__}, {_name(device)}, {config.minutes:g} minutes")

    make_tokenizer(known, config.tokenizer, tokenizer)
    clock.log("tokenizer made")
    with SceneFactory(known, tokenizer, config) as scenes:
        textures = load_textures(data, known, device)
        clock.log("textures loaded; the first steps of the VAE compile it (about a minute on a GPU)")
        vae = build_vae()
        end = config.seconds - config.evaluation_s
        vae_steps = train_vae(vae, scenes, textures, config.vae, clock, end=end, compiled=config.compile)
        clock.log(f"VAE trained for {vae_steps} steps; caching latents")
        caches, scale = cache_latents(vae, scenes, textures, config.canvases)
    clock.log(
        f"{sum(len(cache.patches) for cache in caches)} scenes cached, shift {scale.shift}, factor {scale.factor}"
    )

    prompts = PromptEncoder(tokenizer)
    text_encoder = build_text_encoder(config.tokenizer.vocabulary, prompts.token(END_TOKEN), prompts.token(PAD_TOKEN))
    predictor = Predictor(build_transformer().to(device), text_encoder.to(device), config.compile)
    sampler = BatchSampler(caches, prompts, config)
    trained = train_transformer(predictor, sampler, config.transformer, clock, end)
    clock.log(f"transformer trained for {trained.steps} steps, loss {trained.loss:.4f}")

    size = export(vae, predictor.text_encoder, predictor.transformer, tokenizer, config.transformer.shift, model)
    clock.log(f"exported to {model}, {size / 2**20:.1f} MiB; evaluating")
    scores = evaluate(model, data, config.evaluation, out / "sheet.png", textures)
    result = RunResult(
        device=_name(device),
        torch=torch.__version__,
        minutes=config.minutes,
        seconds=round(clock.elapsed, 1),
        vae_steps=vae_steps,
        transformer_steps=trained.steps,
        loss=round(trained.loss, 4),
        model_bytes=size,
        scores=scores,
    )
    (out / "results.json").write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    clock.log(f"finished\n{summary(result)}")
    return result


def summary(result: RunResult) -> str:
    """The run as a short table."""
    return table(
        [
            ("time", f"{result.seconds:.0f} s of {result.minutes * 60:.0f}"),
            ("machine", f"{result.device}, torch {result.torch}"),
            ("VAE steps", f"{result.vae_steps:,}"),
            ("transformer steps", f"{result.transformer_steps:,}, loss {result.loss:.4f}"),
            ("model", f"{result.model_bytes / 2**20:.1f} MiB"),
            *map(score_row, result.scores),
        ]
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
