"""The engine's forward against diffusers' modules on random weights and inputs, fp32 on the CPU."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas
from torch import Tensor

from serve.engine.forward import velocities
from serve.engine.guidance import Guidance
from serve.engine.zimage import Row, ZImageTransformer, patchify, unpatchify

TOLERANCE = 1e-5
SHIFTED = FlowMatchEulerDiscreteScheduler(shift=3.0)
DYNAMIC = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@pytest.fixture(scope="module", params=[True, False], ids=["qk-norm", "no-qk-norm"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = ZImageTransformer2DModel(
        dim=96,
        n_layers=3,
        n_refiner_layers=2,
        n_heads=3,
        n_kv_heads=3,
        qk_norm=request.param,
        cap_feat_dim=48,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 512, 512],
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def ours(model: Any) -> ZImageTransformer:
    with torch.inference_mode():
        return ZImageTransformer(copy.deepcopy(model), SHIFTED)


def row(ours: ZImageTransformer, seed: int, tokens: int, height: int, width: int, step: int, steps: int = 8) -> Row:
    embedding = torch.randn(tokens, 48, generator=torch.Generator().manual_seed(seed + 100))
    schedule = ours.schedule(steps, (height // 16) * (width // 16))
    return Row(ours.noise(seed, height, width), ours.caption(embedding), schedule, step, height, width)


def theirs(model: Any, seed: int, tokens: int, height: int, width: int, step: int, steps: int = 8) -> Tensor:
    """What ZImagePipeline computes at one step, in token space and signed as ours."""
    embedding = torch.randn(tokens, 48, generator=torch.Generator().manual_seed(seed + 100))
    latents = torch.randn((1, 16, height // 8, width // 8), generator=torch.Generator().manual_seed(seed))
    scheduler = copy.deepcopy(SHIFTED)
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps))
    time = (1000 - scheduler.timesteps[step].expand(1)) / 1000
    with torch.inference_mode():
        (output,) = model([latents[0].unsqueeze(1)], time, [embedding], return_dict=False)[0]
    return -patchify(output.squeeze(1))


@pytest.mark.parametrize(
    ("tokens", "height", "width", "step", "steps"),
    [(5, 64, 64, 0, 8), (32, 128, 96, 3, 8), (33, 80, 208, 7, 8), (511, 64, 80, 0, 1), (64, 112, 112, 49, 50)],
)
def test_a_step_equals_diffusers(
    model: Any, ours: ZImageTransformer, tokens: int, height: int, width: int, step: int, steps: int
) -> None:
    velocity = ours.velocity([row(ours, 1, tokens, height, width, step, steps)])[0]
    expected = theirs(model, 1, tokens, height, width, step, steps)
    assert (velocity - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_rows_of_one_step_do_not_know_of_each_other(model: Any, ours: ZImageTransformer) -> None:
    """Different prompts, real caption lengths, step indices and numbers of steps; one shape."""
    cases = [(1, 20, 0, 8), (2, 31, 5, 8), (3, 1, 2, 4), (4, 32, 0, 1)]
    together = ours.velocity([row(ours, seed, tokens, 96, 64, step, steps) for seed, tokens, step, steps in cases])
    for velocity, (seed, tokens, step, steps) in zip(together, cases, strict=True):
        expected = theirs(model, seed, tokens, 96, 64, step, steps)
        assert (velocity - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_a_step_in_parts_is_the_same_numbers_whatever_runs_between(ours: ZImageTransformer, parts: int) -> None:
    """Also with more parts than there are layers."""
    rows = [row(ours, seed, 20, 96, 64, seed) for seed in (1, 2)]
    whole = ours.velocity(rows)
    done = []
    for result in ours.segments(rows, parts):
        done.append(result)
        ours.velocity([row(ours, 3, 40, 64, 64, 0)])
    assert len(done) == parts
    assert torch.equal(done[-1], whole)


def test_the_pipeline_still_guides_as_we_do() -> None:
    """Our defaults are its own: no normalisation, no truncation."""
    defaults = inspect.signature(ZImagePipeline.__call__).parameters
    assert defaults["cfg_normalization"].default is False
    assert defaults["cfg_truncation"].default == 1.0


def test_a_bound_only_shortens_what_is_guided_to() -> None:
    positive, negative = torch.ones(4, 64), torch.zeros(4, 64)
    plain = Guidance(3.0).combine(positive, negative)
    assert torch.equal(plain, 4 * positive)
    assert torch.allclose(Guidance(3.0, normalization=1.5).combine(positive, negative), 1.5 * positive)
    assert torch.equal(Guidance(3.0, normalization=9.0).combine(positive, negative), plain)


@pytest.mark.parametrize("scheduler", [SHIFTED, DYNAMIC], ids=["shift 3", "dynamic"])
@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_sigmas_equal_the_pipelines(model: Any, scheduler: Any, steps: int) -> None:
    with torch.inference_mode():
        ours = ZImageTransformer(copy.deepcopy(model), scheduler)
    reference = copy.deepcopy(scheduler)
    reference.set_timesteps(sigmas=get_default_z_image_sigmas(steps), mu=calculate_shift(1024))
    assert list(ours.schedule(steps, 1024).sigmas) == reference.sigmas.tolist()


def test_tokens_and_latents_are_the_same_numbers() -> None:
    latents = torch.randn(16, 10, 26)
    assert torch.equal(unpatchify(patchify(latents), 80, 208), latents)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_loop_takes_a_forward_to_its_very_end(ours: ZImageTransformer, parts: int) -> None:
    """What is left before its end is not recorded on a GPU, and the next step is not faster."""
    ended = []

    class Watched:
        def segments(self, rows: list[Row], parts: int) -> Iterator[Tensor]:
            yield from ours.segments(rows, parts)
            ended.append(parts)

    flight = SimpleNamespace(rows=lambda: [row(ours, 1, 20, 96, 64, 2)])
    *pauses, moves = velocities(Watched(), [flight], parts)  # type: ignore[arg-type, list-item]
    assert pauses == [None] * (parts - 1)
    assert torch.equal(moves[0], ours.velocity([row(ours, 1, 20, 96, 64, 2)])[0])
    assert ended == [parts]


def test_what_is_fused_is_not_kept_a_second_time(model: Any) -> None:
    taken = copy.deepcopy(model)
    blocks = [*taken.noise_refiner, *taken.layers, *taken.context_refiner]
    parts = [part for block in blocks for half in (block.attention, block.feed_forward) for part in half.modules()]
    fused = [weakref.ref(part) for part in parts if isinstance(part, torch.nn.Linear)]
    assert len(fused) == 7 * len(blocks)
    del blocks, parts
    ours = ZImageTransformer(taken, SHIFTED)
    del taken
    gc.collect()
    assert not [matrix() for matrix in fused if matrix() is not None]
    assert ours.channels == model.in_channels
