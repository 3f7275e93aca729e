"""Pictures with ControlNets equal diffusers' pipelines, that for masks as well, alone and in mixed crowds."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
)

from serve.messages import ImageRequest
from serve.settings import EMBEDDED_FOLDER, Settings
from tests import adapter_files, control_files
from tests.exactness import inputs
from tests.exactness.crowd import Crowd, Visitor

TOLERANCE = 1  # of 255
CROWDS = int(os.environ.get("ZIMAGE_EXACTNESS_CROWDS", "2"))
KNOWING_MASKS = ("shared", "own")
Draw = Callable[[ImageRequest], np.ndarray]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("controlnets")
    return {kind: control_files.write(folder / kind, kind) for kind in control_files.KINDS}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It changes what a ControlNet shares with the model, too."""
    path = tmp_path_factory.mktemp("adapters") / "everywhere.safetensors"
    return adapter_files.diffusers(path, everything=True)


@pytest.fixture(scope="module")
def crowd(folders: dict[str, Path], adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    options = {
        "data": tmp_path_factory.mktemp("data"),
        "warmup_sizes_px": (64, 128),
        "scheduler": {"split_step_ms": 1},
        "adapters": {"everywhere": str(adapter)},
        "controlnets": {name: str(path) for name, path in folders.items()},
        "controlnet_bytes": "20MB",  # not all of them at once
    }
    crowd = Crowd(Settings.model_validate(options))
    yield crowd
    crowd.close()


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path], adapter: Path) -> Draw:
    torch.set_num_threads(1)
    plain: Any = ZImagePipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        plain.load_lora_weights(str(adapter), adapter_name="everywhere")
    pipes: dict[str | None, Any] = {None: plain}
    inpainting = dict[str | None, Any]()
    for name, folder in folders.items():
        parts: dict[str, Any] = plain.components | {"controlnet": ZImageControlNetModel.from_pretrained(folder)}
        pipes[name] = ZImageControlNetPipeline(**parts)
        pipes[name].set_progress_bar_config(disable=True)
        if name in KNOWING_MASKS:
            inpainting[name] = ZImageControlNetInpaintPipeline(**parts)
            inpainting[name].set_progress_bar_config(disable=True)

    def draw(request: ImageRequest) -> np.ndarray:
        pipe, more = (pipes if request.mask is None else inpainting)[request.controlnet], {}
        if request.control_image is not None:
            more["control_image"] = inputs.opened(request.control_image)
            more["controlnet_conditioning_scale"] = request.controlnet_conditioning_scale
        if request.adapter is None:
            plain.disable_lora()
        else:
            plain.enable_lora()
            plain.set_adapters(request.adapter, request.adapter_scale)
        if request.image is not None and request.mask is not None:
            more |= {"image": inputs.opened(request.image), "mask_image": inputs.opened(request.mask)}
        elif request.image is not None:
            more |= begun(plain, request)
        return np.asarray(
            pipe(
                request.prompt,
                negative_prompt=request.negative_prompt,
                height=request.height,
                width=request.width,
                guidance_scale=request.guidance,
                cfg_normalization=request.cfg_normalization,
                cfg_truncation=request.cfg_truncation,
                generator=torch.Generator().manual_seed(request.seed),
                **{"num_inference_steps": request.steps} | more,
            ).images[0]
        )

    return draw


def begun(plain: Any, request: ImageRequest) -> dict[str, Any]:
    """Latents and sigmas with which a pipeline goes on from where `ZImageImg2ImgPipeline` begins."""
    pipe: Any = ZImageImg2ImgPipeline(**plain.components)
    pipe.set_progress_bar_config(disable=True)
    prepare, prepared = pipe.prepare_latents, list[torch.Tensor]()

    def watched(*args: Any, **more: Any) -> torch.Tensor:
        prepared.append(prepare(*args, **more))
        return prepared[0]

    pipe.prepare_latents = watched
    pipe(
        request.prompt,
        image=inputs.opened(request.image or ""),
        strength=request.strength,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(request.seed),
    )
    sigmas = torch.linspace(1.0, 1 / request.steps, request.steps).tolist()[request.steps - request.steps_taken :]
    return {"latents": prepared[0], "sigmas": sigmas, "num_inference_steps": len(sigmas)}


def request(seed: int, controlnet: str | None, scale: float = 0.8, **changes: Any) -> ImageRequest:
    asked = ImageRequest(
        model="z-image-turbo",
        seed=seed,
        controlnet=controlnet,
        controlnet_conditioning_scale=1.0 if controlnet is None else scale,
        **({"prompt": "a red fox on a yellow background", "width": 64, "height": 96, "steps": 4} | changes),
    )
    if controlnet is None:
        return asked
    return replace(asked, control_image=inputs.picture(seed % 3, asked.width, asked.height))


def off(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def drawn(crowd: Crowd, asked: ImageRequest) -> np.ndarray:
    (picture,) = crowd.serve([Visitor(asked)])
    assert picture is not None
    return picture


@pytest.mark.parametrize("kind", control_files.KINDS)
@pytest.mark.parametrize("scale", [0.8, 1.7])
def test_a_picture_with_a_controlnet_equals_diffusers(crowd: Crowd, reference: Draw, kind: str, scale: float) -> None:
    asked = request(7, kind, scale)
    picture = drawn(crowd, asked)
    assert off(picture, reference(asked)) <= TOLERANCE
    assert off(picture, reference(request(7, None))) > 4  # it changes something
    assert (
        off(picture, reference(replace(asked, control_image=inputs.picture(2, 64, 96)))) > 4
    )  # and so does the picture


@pytest.mark.parametrize("kind", control_files.KINDS)
def test_with_scale_0_it_changes_nothing(crowd: Crowd, kind: str) -> None:
    assert off(drawn(crowd, request(7, kind, 0.0)), drawn(crowd, request(7, None))) <= TOLERANCE


@pytest.mark.parametrize("kind", control_files.KINDS)
@pytest.mark.parametrize("negative", ["a blue cat", "a blue cat " * 12], ids=["one forward", "two forwards"])
def test_a_guided_one_equals_diffusers(crowd: Crowd, reference: Draw, kind: str, negative: str) -> None:
    """Both rows have the control; from a step on that is not guided any more, the one that is left."""
    asked = request(5, kind, guidance=4.0, negative_prompt=negative, cfg_truncation=0.6, steps=6, width=80, height=80)
    assert off(drawn(crowd, asked), reference(asked)) <= TOLERANCE


@pytest.mark.parametrize("kind", control_files.KINDS)
def test_an_adapter_changes_what_it_shares_with_the_model(crowd: Crowd, reference: Draw, kind: str) -> None:
    asked = request(3, kind, adapter="everywhere", adapter_scale=0.7)
    picture = drawn(crowd, asked)
    assert off(picture, reference(asked)) <= TOLERANCE
    assert off(picture, reference(replace(asked, adapter=None, adapter_scale=1.0))) > 4


@pytest.mark.parametrize("kind", ["plain", "own"])
@pytest.mark.parametrize("strength", [0.5, 0.9])
def test_one_that_begins_with_a_picture_equals_diffusers(
    crowd: Crowd, reference: Draw, kind: str, strength: float
) -> None:
    """diffusers has no pipeline for both: its ControlNet goes on from where its image to image begins."""
    asked = replace(request(4, kind, steps=8), image=inputs.picture(1, 64, 96), strength=strength)
    picture = drawn(crowd, asked)
    assert off(picture, reference(asked)) <= TOLERANCE
    assert off(picture, drawn(crowd, replace(asked, image=None, strength=None))) > 4


@pytest.mark.parametrize("kind", KNOWING_MASKS)
@pytest.mark.parametrize("how", [{}, {"guidance": 4.0, "negative_prompt": "a blue cat"}], ids=["plain", "guided"])
def test_one_that_is_given_a_mask_equals_diffusers(
    crowd: Crowd, reference: Draw, kind: str, how: dict[str, Any]
) -> None:
    asked = masked(request(6, kind, 1.8, **how))
    picture = drawn(crowd, asked)
    assert off(picture, reference(asked)) <= TOLERANCE
    assert off(picture, drawn(crowd, replace(asked, image=None, mask=None))) > 4  # it reads them
    assert off(picture, drawn(crowd, replace(asked, mask=inputs.mask(15, 64, 96)))) > 2 * TOLERANCE


def masked(asked: ImageRequest) -> ImageRequest:
    width, height = asked.width, asked.height
    return replace(asked, image=inputs.picture(1, width, height), mask=inputs.mask(1, width, height))


def test_a_mixed_crowd_equals_diffusers(crowd: Crowd, reference: Draw) -> None:
    """Of one shape: ControlNets, adapters and guidance keep them apart; control pictures and their scales do not."""
    asked = [
        request(1, "plain"),
        request(2, None),
        request(3, "plain", 0.3),
        request(4, "own", 1.1),
        request(5, "own", guidance=4.0, negative_prompt="a blue cat"),
        request(6, "shared"),
        masked(request(12, "shared")),
        masked(request(13, "own", 1.3)),
        request(7, None, adapter="everywhere"),
        request(8, "plain", adapter="everywhere"),
        request(9, "plain", 2.0, steps=3),
        request(10, "bare", width=128, height=64, steps=6),
        replace(request(11, "plain"), image=inputs.picture(1, 64, 96), strength=0.7),
    ]
    pictures = crowd.serve([Visitor(it, after_s=0.02 * at) for at, it in enumerate(asked)])
    for it, picture in zip(asked, pictures, strict=True):
        assert picture is not None
        assert off(picture, reference(it)) <= TOLERANCE, it


@pytest.mark.parametrize("seed", range(CROWDS))
def test_every_picture_of_a_random_crowd_equals_diffusers(crowd: Crowd, reference: Draw, seed: int) -> None:
    """Few shapes, so that they meet in steps; who comes when decides with whom, never what is drawn."""
    rng = random.Random(seed)
    asked = [anything(rng) for _ in range(6)]
    pictures = crowd.serve([Visitor(it, after_s=rng.choice([0.0, 0.0, 0.03, 0.1])) for it in asked])
    for it, picture in zip(asked, pictures, strict=True):
        assert picture is not None
        assert off(picture, reference(it)) <= TOLERANCE, it


def anything(rng: random.Random) -> ImageRequest:
    """Plain or controlled, with an adapter or not, guided, or begun with a picture."""
    width, height = rng.choice([(64, 64), (64, 96), (128, 80)])
    made = request(
        rng.randrange(2**31),
        rng.choice([None, "plain", "plain", "shared", "own", "bare"]),
        rng.choice([0.5, 1.0, 1.6]),
        prompt=rng.choice(["a red fox", "two cats in the snow " * 5]),
        width=width,
        height=height,
        steps=rng.randint(2, 8),
        adapter=rng.choice([None, None, "everywhere"]),
    )
    kind = rng.choice(["text", "text", "guided", "begun", "masked"])
    if kind == "guided":
        negative = rng.choice(["", "a blue cat " * 12])
        return replace(made, guidance=4.0, negative_prompt=negative, cfg_truncation=0.7)
    if kind == "masked" and made.controlnet in KNOWING_MASKS:
        return masked(made)
    if kind == "begun" and made.controlnet is not None:
        return replace(made, image=inputs.picture(rng.randrange(3), width, height), strength=rng.choice([0.4, 0.9]))
    return made
