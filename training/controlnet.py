"""Teaches the embedded model to follow lines: `python -m training.controlnet --out build/lines`, minutes on a CPU.

It needs no data: the model draws its own training pictures, which are moved, resized and mirrored at random, and
`lines` says where their colours change. A ControlNet of one block learns by flow matching to draw the prompt's picture
where its lines are; the model itself stays as it is. The folder is in diffusers' layout, as
`ZImageControlNetModel.from_pretrained` and the setting `controlnets` read it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ZImageControlNetModel, ZImagePipeline
from torch import Tensor
from torch.nn import functional

from training.batches import stratified_sigmas
from training.command import run
from training.devices import prepare
from training.lora import CPU, encode, prompts
from training.progress import Clock, disable_progress_bars

THRESHOLD = 0.3  # of how much a colour changes over two pixels, where a line begins


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRecipe:
    """`pictures` are drawn, and each is moved `views` times; `steps` of `batch` views are learned."""

    places: tuple[int, ...] = (0,)
    pictures: int = 320
    views: int = 3
    size_px: int = 128
    drawing_steps: int = 4
    steps: int = 1200
    batch: int = 8
    learning_rate: float = 1e-3
    warm_up_steps: int = 50
    shift: float = 3.0
    seed: int = 0


SMOKE = ControlRecipe(pictures=4, views=1, size_px=64, drawing_steps=2, steps=3, batch=2)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Views of pictures: which caption [L, C] each belongs to, latents [N, 16, h, w], and those of its lines."""

    captions: list[Tensor]
    latents: Tensor
    control: Tensor


def lines(pictures: Tensor) -> Tensor:
    """RGB [N, 3, H, W] in 0..1 -> white where colours change and black elsewhere."""
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).square().sum(1, keepdim=True)
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).square().sum(1, keepdim=True)
    return ((across + down).sqrt() > THRESHOLD).float().expand(-1, 3, -1, -1)


def moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each at another place, 0.55 to 1.15 times as large, every other one mirrored; its border goes on outside."""

    def random(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(pictures), generator=generator)

    smaller = 1 / random(0.55, 1.15)
    mirrored = torch.where(torch.rand(len(pictures), generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(len(pictures))
    where = torch.stack(
        [
            torch.stack([smaller * mirrored, zero, random(-0.5, 0.5) * smaller], 1),
            torch.stack([zero, smaller, random(-0.5, 0.5) * smaller], 1),
        ],
        1,
    )
    grid = functional.affine_grid(where, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False).clamp(0, 1)


@torch.no_grad()
def draw(pipe: Any, texts: list[str], recipe: ControlRecipe, first_seed: int) -> Tensor:
    """RGB [N, 3, H, W] in 0..1."""
    generator = [torch.Generator().manual_seed(first_seed + i) for i in range(len(texts))]
    drawn = pipe(
        texts, height=recipe.size_px, width=recipe.size_px, num_inference_steps=recipe.drawing_steps,
        guidance_scale=0.0, generator=generator, output_type="np",
    ).images  # fmt: skip
    return torch.from_numpy(np.asarray(drawn)).permute(0, 3, 1, 2).float()


@torch.no_grad()
def prepare_lesson(pipe: Any, recipe: ControlRecipe, clock: Clock) -> Lesson:
    generator = torch.Generator().manual_seed(recipe.seed)
    captions, latents, control = list[Tensor](), list[Tensor](), list[Tensor]()
    texts = prompts(recipe.pictures, recipe.seed)
    for start in range(0, len(texts), recipe.batch):
        some = texts[start : start + recipe.batch]
        pictures = draw(pipe, some, recipe, recipe.seed + start)
        embeddings = pipe.encode_prompt(list(some), device=CPU, do_classifier_free_guidance=False)[0]
        for _ in range(recipe.views):
            views = moved(pictures, generator)
            captions += embeddings
            latents.append(encode(pipe.vae, views))
            control.append(encode(pipe.vae, lines(views)))
        if start % (8 * recipe.batch) == 0:
            clock.log(f"{start + len(some)} of {len(texts)} pictures drawn")
    return Lesson(captions, torch.cat(latents), torch.cat(control))


def begin(transformer: Any, recipe: ControlRecipe) -> ZImageControlNetModel:
    """Its blocks begin as the model's own at the same places; it changes nothing yet, as its last matrix is zero."""
    config = transformer.config
    net = ZImageControlNetModel(
        control_layers_places=list(recipe.places),
        control_in_dim=config.in_channels,
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        n_refiner_layers=0,
        norm_eps=config.norm_eps,
        qk_norm=config.qk_norm,
    )
    for block, place in zip(net.control_layers, recipe.places, strict=True):
        block.load_state_dict(transformer.layers[place].state_dict(), strict=False)
    net.gradient_checkpointing = False  # diffusers' forward asks for it while it learns, and no one else sets it
    net.control_all_x_embedder["2-1"].load_state_dict(transformer.all_x_embedder["2-1"].state_dict())
    return net


def learn(net: ZImageControlNetModel, transformer: Any, lesson: Lesson, recipe: ControlRecipe, clock: Clock) -> float:
    """Returns the mean loss of the last tenth of the steps."""
    transformer.requires_grad_(False)
    parameters = list(net.parameters())  # those of the model are not among them yet
    ZImageControlNetModel.from_transformer(net, transformer)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, 1.0, recipe.warm_up_steps)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    losses: list[float] = []
    for step in range(recipe.steps):
        loss = _loss(net, transformer, lesson, recipe)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        (rising if step < recipe.warm_up_steps else falling).step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 50 == 0:
            clock.log(f"step {step}, loss {np.mean(losses[-50:]):.4f}")
    return float(np.mean(losses[-max(1, recipe.steps // 10) :]))


def _loss(net: Any, transformer: Any, lesson: Lesson, recipe: ControlRecipe) -> Tensor:
    """The model sees (1 - σ) · x + σ · ε at time 1 - σ, and predicts x - ε."""
    chosen = torch.randint(len(lesson.latents), (recipe.batch,)).tolist()
    clean = lesson.latents[chosen]
    noise = torch.randn_like(clean)
    sigma = stratified_sigmas(recipe.batch, recipe.shift, CPU)
    seen = list(torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1)).unsqueeze(2).unbind())
    captions = [lesson.captions[i] for i in chosen]
    hints = net(seen, 1 - sigma, captions, list(lesson.control[chosen].unsqueeze(2).unbind()))
    predicted = transformer(seen, 1 - sigma, captions, return_dict=False, controlnet_block_samples=hints)[0]
    return functional.mse_loss(torch.stack(list(predicted)).squeeze(2), clean - noise)


def save(net: Any, folder: Path) -> int:
    """Its own weights in bf16, without those that it shares with the model; returns the size in bytes."""
    for shared in ("t_embedder", "all_x_embedder", "cap_embedder", "noise_refiner", "context_refiner"):
        setattr(net, shared, None)
    net.x_pad_token = net.cap_pad_token = None
    for parameter in net.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    net.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def train(recipe: ControlRecipe, model: Path, out: Path) -> int:
    """Returns the size of the weights that it writes."""
    clock = Clock(time.monotonic(), out.with_suffix(".log"))
    disable_progress_bars()
    prepare(CPU)
    torch.manual_seed(recipe.seed)
    pipe = ZImagePipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    lesson = prepare_lesson(pipe, recipe, clock)
    net = begin(pipe.transformer, recipe)
    loss = learn(net, pipe.transformer, lesson, recipe, clock)
    size = save(net, out)
    clock.log(f"{out}: {size:,} bytes, loss {loss:.4f}")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    run(train, ControlRecipe(), SMOKE, about=__doc__, what="folder", arguments=arguments)


if __name__ == "__main__":
    main()
