"""The recipe of the shipped ControlNet: what it learns from, a few steps of everything, and what it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImageControlNetModel, ZImageControlNetPipeline, ZImagePipeline
from PIL import Image

from serve.controlnets import FILES
from serve.settings import EMBEDDED_FOLDER, Settings
from training.controlnet import lines, main, moved

SHIPPED = EMBEDDED_FOLDER / "controlnets" / "lines"


def test_lines_are_white_where_colours_change() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0, :, 16:] = 1.0
    drawn = lines(picture)[0]
    assert drawn[:, :, 15:17].min() == 1
    assert drawn[:, :, :15].max() == drawn[:, :, 17:].max() == 0


def test_views_are_the_same_for_a_seed_and_keep_the_background() -> None:
    pictures = torch.ones(4, 3, 64, 64) * torch.rand(4, 3, 1, 1)
    pictures[:, :, 24:40, 24:40] = 0
    views = [moved(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert torch.allclose(views[0].amax((2, 3)), pictures[:, :, 0, 0], atol=1e-5)


def test_a_few_steps_make_a_folder_that_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lines"
    main(["--smoke", "--out", str(out)])
    options = {"controlnets": {"new": str(out), "lines": str(SHIPPED)}}
    files = FILES.open(Settings.model_validate(options), EMBEDDED_FOLDER)
    assert files["new"].parameters == files["lines"].parameters
    assert files["new"].config == files["lines"].config
    assert "loss" in capsys.readouterr().out


def test_with_the_shipped_one_pictures_follow_lines_and_without_they_do_not() -> None:
    """Of prompts and places: the lines of one picture are moved, and another seed is drawn along them."""
    torch.set_num_threads(1)
    pipe = ZImagePipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    net = ZImageControlNetModel.from_pretrained(SHIPPED, torch_dtype=torch.float32)
    controlled = ZImageControlNetPipeline(**pipe.components, controlnet=net)
    controlled.set_progress_bar_config(disable=True)
    prompts = ["a banana on a blue background", "a gift", "a slice of pizza", "a red fox on a yellow background"]
    with_it, without = [], []
    for at, prompt in enumerate(prompts):
        first = drawn(pipe, prompt, 900 + at)
        asked = lines(moved(first, torch.Generator().manual_seed(at)))
        picture = Image.fromarray((asked[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        more = {"control_image": picture, "controlnet_conditioning_scale": 1.0}
        with_it.append(alike(lines(drawn(controlled, prompt, at, **more)), asked))
        without.append(alike(lines(drawn(pipe, prompt, at)), asked))
    assert np.mean(with_it) > 0.4
    assert np.mean(with_it) > np.mean(without) + 0.25


def drawn(pipe: object, prompt: str, seed: int, **more: object) -> torch.Tensor:
    image = pipe(  # type: ignore[operator]
        prompt,
        height=128,
        width=128,
        num_inference_steps=6,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        **more,
    ).images
    return torch.from_numpy(np.asarray(image)).permute(0, 3, 1, 2).float()


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """The correlation of how much line there is in each square of 4 pixels, 1 where they are the same."""
    cells = [torch.nn.functional.avg_pool2d(it[:, :1], 4).flatten() for it in (one, other)]
    return float(torch.corrcoef(torch.stack(cells))[0, 1])
