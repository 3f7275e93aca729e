"""The VAE, trained on pictures composed on the fly."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training.config import VaeConfig
from training.data.blocks import SceneFactory
from training.data.compositor import NATIVE_PX, compose
from training.data.textures import Textures
from training.devices import autocast
from training.models import LATENT_CHANNELS
from training.progress import Clock, TimedLoop

_FIRST_BLOCKS = 6  # enough scenes to begin with; more are taken in as they come
_LATENT_PX = NATIVE_PX // 8


def train_vae(
    vae: AutoencoderKL,
    scenes: SceneFactory,
    textures: Textures,
    config: VaeConfig,
    clock: Clock,
    *,
    end: float,
    compiled: bool,
) -> int:
    """Trains until its share of the time up to `end` is over; returns the number of steps."""
    device = textures[NATIVE_PX].device
    vae.to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        vae.parameters(), betas=config.betas, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )
    loss_of = torch.compile(_loss, dynamic=False) if compiled else _loss
    pictures = _Pictures(scenes, textures, config)
    loop = TimedLoop(clock, end, share=config.time_share, max_steps=config.max_steps)
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = (
                config.learning_rate * min(1, (step.number + 1) / config.warmup_steps) * (1 - step.done) + 1e-6
            )
        kl_weight = config.kl_weight * min(1, (step.number + 1) / config.kl_warmup_steps)
        x = pictures.draw(cropped=step.number % config.crop_every == config.crop_every - 1)
        noise = torch.randn(len(x), LATENT_CHANNELS, _LATENT_PX, _LATENT_PX, device=device)
        weights = torch.tensor([config.gradient_weight, kl_weight], device=device)
        loss, squared_error = loss_of(vae, x, noise, weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step.report:
            clock.log(f"vae step {step.number}, {loop.rate:.1f}/s, psnr {_psnr(squared_error):.1f} dB")
            pictures.take_new_scenes()
    return loop.steps


class _Pictures:
    def __init__(self, scenes: SceneFactory, textures: Textures, config: VaeConfig) -> None:
        self._scenes = scenes
        self._textures = textures
        self._batch = config.batch
        self._load()

    def take_new_scenes(self) -> None:
        if self._scenes.native_ready > self._loaded:
            self._load()

    @torch.no_grad()
    def draw(self, cropped: bool) -> Tensor:
        """[B, 3, 128, 128]; a crop shows objects off centre and cut."""
        rows = torch.randint(len(self._backgrounds), (self._batch,), device=self._backgrounds.device)
        side = NATIVE_PX * 2 if cropped else NATIVE_PX
        x = compose(self._backgrounds[rows], self._layers[rows], self._textures, side, side)
        top, left = torch.randint(side - NATIVE_PX + 1, (2,)).tolist()
        x = x[:, :, top : top + NATIVE_PX, left : left + NATIVE_PX]
        return x.contiguous(memory_format=torch.channels_last)

    def _load(self) -> None:
        self._loaded, device = self._scenes.native_ready, self._textures[NATIVE_PX].device
        block = self._scenes.native(_FIRST_BLOCKS)
        self._backgrounds = torch.from_numpy(block.backgrounds).to(device)
        self._layers = torch.from_numpy(block.layers).to(device)


def _loss(vae: AutoencoderKL, x: Tensor, noise: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the mean squared error for the log. `weights` are those of gradients and KL."""
    with autocast(x.device):
        mean, log_variance = vae.encoder(x).float().chunk(2, 1)
        log_variance = log_variance.clamp(-12, 6)
        y = vae.decoder(mean + torch.exp(0.5 * log_variance) * noise).float()
    squared_error = ((y - x) ** 2).mean()
    gradients = sum(
        (_gradient_error(functional.avg_pool2d(y, scale), functional.avg_pool2d(x, scale)) for scale in (1, 2, 4)),
        start=torch.zeros((), device=x.device),
    )
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    loss = (y - x).abs().mean() + squared_error + weights[0] * gradients + weights[1] * kl
    return loss, squared_error.detach()


def _gradient_error(y: Tensor, x: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels: keeps edges sharp."""
    difference = y - x
    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def _psnr(squared_error: Tensor) -> float:
    return 10 * math.log10(4 / squared_error.item())
