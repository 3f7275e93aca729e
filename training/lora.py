"""Teaches the embedded model a style: `python -m training.lora --out build/blueprint.safetensors`, minutes on a CPU.

It needs no data: the model draws its own training pictures, `blueprint` turns them into white lines on blue paper, and
a LoRA of rank 4 learns by flow matching to draw them so. The file is in diffusers' format, as `load_lora_weights` and
the setting `adapters` read it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import ZImagePipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from training.batches import stratified_sigmas
from training.command import run
from training.data.palette import COLORS
from training.data.vocabulary import OBJECTS_FILE
from training.devices import prepare
from training.progress import Clock, disable_progress_bars

PAPER = (24, 66, 140)
CPU = torch.device("cpu")
INK = (240, 246, 255)
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe:
    """`pictures` are drawn at once, `steps` of `batch` of them are learned; the learning rate falls to zero."""

    rank: int = 4
    pictures: int = 384
    size_px: int = 128
    drawing_steps: int = 8
    steps: int = 1500
    batch: int = 8
    learning_rate: float = 2e-3
    shift: float = 3.0
    seed: int = 0


SMOKE = LoraRecipe(pictures=4, size_px=64, drawing_steps=2, steps=3, batch=2)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Prompts as the transformer reads them, each [L, C], and the latents [N, 16, h, w] of their pictures in style."""

    captions: list[Tensor]
    latents: Tensor


def blueprint(pictures: Tensor) -> Tensor:
    """RGB [N, 3, H, W] in 0..1 -> lines where colours change, on paper that is a little lighter where they are."""
    grey = (pictures * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).square().sum(1, keepdim=True)
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).square().sum(1, keepdim=True)
    lines = ((across + down).sqrt() * 1.6).clamp(0, 1)
    paper = torch.tensor(PAPER).view(1, 3, 1, 1) / 255 * (0.8 + 0.45 * grey)
    ink = torch.tensor(INK).view(1, 3, 1, 1) / 255
    return (paper + (ink - paper) * lines).clamp(0, 1)


def prompts(count: int, seed: int) -> list[str]:
    """Of the model's own vocabulary, one object or two, on white or on a colour."""
    rng = random.Random(seed)
    names = [name.lower() for name in yaml.safe_load(OBJECTS_FILE.read_text(encoding="utf-8"))["objects"]]
    colors = list(COLORS)
    made = []
    for _ in range(count):
        thing = f"a {rng.choice(names)}" if rng.random() < 0.8 else f"a {rng.choice(names)} and a {rng.choice(names)}"
        made.append(thing if rng.random() < 0.3 else f"{thing} on a {rng.choice(colors)} background")
    return made


@torch.no_grad()
def prepare_lesson(pipe: Any, recipe: LoraRecipe, clock: Clock) -> Lesson:
    captions: list[Tensor] = []
    latents: list[Tensor] = []
    texts = prompts(recipe.pictures, recipe.seed)
    for start in range(0, len(texts), recipe.batch):
        some = texts[start : start + recipe.batch]
        generator = [torch.Generator().manual_seed(recipe.seed + start + i) for i in range(len(some))]
        sides = {"height": recipe.size_px, "width": recipe.size_px}
        drawn = pipe(
            some, **sides, num_inference_steps=recipe.drawing_steps, guidance_scale=0.0, generator=generator,
            output_type="np",
        ).images  # fmt: skip
        captions += pipe.encode_prompt(some, device=pipe.device, do_classifier_free_guidance=False)[0]
        latents.append(encode(pipe.vae, blueprint(torch.from_numpy(np.asarray(drawn)).permute(0, 3, 1, 2).float())))
        if start % (8 * recipe.batch) == 0:
            clock.log(f"{start + len(some)} of {len(texts)} pictures drawn")
    return Lesson(captions, torch.cat(latents))


def encode(vae: Any, pictures: Tensor) -> Tensor:
    """RGB [N, 3, H, W] in 0..1 -> latents as the transformer sees them."""
    mean = vae.encode(pictures * 2 - 1).latent_dist.mode()
    scaled: Tensor = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled


def learn(transformer: Any, lesson: Lesson, recipe: LoraRecipe, clock: Clock) -> float:
    """Leaves an adapter in the transformer; returns the mean loss of the last tenth of the steps."""
    transformer.requires_grad_(False)
    blocks = r"(layers|noise_refiner)\.\d+\..*"
    modules = "|".join(name.replace(".", r"\.") for name in TARGETS)
    transformer.add_adapter(
        LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=rf"{blocks}\.?({modules})")
    )
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    losses: list[float] = []
    for step in range(recipe.steps):
        loss = _loss(transformer, lesson, recipe)
        torch.autograd.backward(loss)
        optimizer.step()
        falling.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 50 == 0:
            clock.log(f"step {step}, loss {np.mean(losses[-50:]):.4f}")
    return float(np.mean(losses[-max(1, recipe.steps // 10) :]))


def _loss(transformer: Any, lesson: Lesson, recipe: LoraRecipe) -> Tensor:
    """The model sees (1 - σ) · x + σ · ε at time 1 - σ, and predicts x - ε."""
    chosen = torch.randint(len(lesson.latents), (recipe.batch,)).tolist()
    clean = lesson.latents[chosen]
    noise = torch.randn_like(clean)
    sigma = stratified_sigmas(recipe.batch, recipe.shift, CPU)
    mixed = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
    seen = list(mixed.unsqueeze(2).unbind())
    predicted = transformer(seen, 1 - sigma, [lesson.captions[i] for i in chosen], return_dict=False)[0]
    return functional.mse_loss(torch.stack(list(predicted)).squeeze(2), clean - noise)


def save(transformer: Any, path: Path) -> int:
    """In bf16; returns the size in bytes."""
    tensors = {
        f"transformer.{name}": tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(transformer, adapter_name="default").items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    return path.stat().st_size


def train(recipe: LoraRecipe, model: Path, out: Path) -> int:
    """Returns the size of the file that it writes."""
    clock = Clock(time.monotonic(), out.with_suffix(".log"))
    disable_progress_bars()
    prepare(CPU)
    torch.manual_seed(recipe.seed)
    pipe = ZImagePipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    lesson = prepare_lesson(pipe, recipe, clock)
    loss = learn(pipe.transformer, lesson, recipe, clock)
    size = save(pipe.transformer, out)
    clock.log(f"{out}: {size:,} bytes, loss {loss:.4f}")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    run(train, LoraRecipe(), SMOKE, about=__doc__, what="file", arguments=arguments)


if __name__ == "__main__":
    main()
