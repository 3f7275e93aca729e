"""Pictures with adapters equal diffusers' with `load_lora_weights` and `set_adapters`, alone and in mixed crowds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
from diffusers.loaders import ZImageLoraLoaderMixin

from serve.messages import ImageRequest
from serve.settings import EMBEDDED_FOLDER, Settings
from tests import adapter_files
from tests.exactness import inputs
from tests.exactness.crowd import Crowd, Visitor

TOLERANCE = 1  # of 255
SHIPPED = EMBEDDED_FOLDER / "adapters" / "blueprint.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "blueprint": SHIPPED,
        "everywhere": adapter_files.diffusers(folder / "everywhere.safetensors", everything=True),
        "comfy": adapter_files.comfy(folder / "comfy.safetensors"),
        "kohya": adapter_files.kohya(folder / "kohya.safetensors"),
    }


@pytest.fixture(scope="module")
def crowd(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    options = {
        "data": tmp_path_factory.mktemp("data"),
        "warmup_sizes_px": (64, 128),
        "scheduler": {"split_step_ms": 1},
        "adapters": {name: str(path) for name, path in files.items()},
        "adapter_bytes": "1200KB",  # not all of them at once
    }
    crowd = Crowd(Settings.model_validate(options))
    yield crowd
    crowd.close()


@pytest.fixture(scope="module")
def reference(files: dict[str, Path]) -> Callable[[ImageRequest], np.ndarray]:
    torch.set_num_threads(1)
    pipe: Any = ZImagePipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name, path in files.items():
            pipe.load_lora_weights(str(path), adapter_name=name)

    from_picture: Any = ZImageImg2ImgPipeline(**pipe.components)
    from_picture.set_progress_bar_config(disable=True)

    def draw(request: ImageRequest) -> np.ndarray:
        kind, begins_with = pipe, {}
        if request.image is not None:
            kind, begins_with = from_picture, {"image": inputs.opened(request.image), "strength": request.strength}
        if request.adapter is None:
            pipe.disable_lora()
        else:
            pipe.enable_lora()
            pipe.set_adapters(request.adapter, request.adapter_scale)
        return np.asarray(
            kind(
                request.prompt,
                negative_prompt=request.negative_prompt,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=torch.Generator().manual_seed(request.seed),
                **begins_with,
            ).images[0]
        )

    return draw


def request(seed: int, adapter: str | None, scale: float = 1.0, **changes: Any) -> ImageRequest:
    plain: dict[str, Any] = {"prompt": "a red fox on a yellow background", "width": 64, "height": 96, "steps": 4}
    return ImageRequest(model="z-image-turbo", seed=seed, adapter=adapter, adapter_scale=scale, **(plain | changes))


def off(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("name", ["blueprint", "everywhere", "comfy", "kohya"])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_a_picture_with_an_adapter_equals_diffusers(
    crowd: Crowd, reference: Callable[[ImageRequest], np.ndarray], name: str, scale: float
) -> None:
    asked = request(7, name, scale)
    (picture,) = crowd.serve([Visitor(asked)])
    assert picture is not None
    assert off(picture, reference(asked)) <= TOLERANCE
    assert off(picture, reference(request(7, None))) > 4  # it changes something


def test_with_scale_0_it_changes_nothing(crowd: Crowd) -> None:
    with_it, without = crowd.serve([Visitor(request(7, "everywhere", 0.0)), Visitor(request(7, None))])
    assert with_it is not None
    assert without is not None
    assert off(with_it, without) <= TOLERANCE


def test_a_mixed_crowd_equals_diffusers(crowd: Crowd, reference: Callable[[ImageRequest], np.ndarray]) -> None:
    """Same size and prompt: adapters, scales and guidance keep them apart; adapters are loaded and go meanwhile."""
    asked = [
        request(1, "blueprint"),
        request(2, None),
        request(3, "blueprint", 0.5),
        request(4, "everywhere", 0.7),
        request(5, "everywhere", 0.7, guidance=4.0, negative_prompt="a blue cat"),
        request(6, "comfy"),
        request(7, None),
        request(8, "blueprint"),
        request(9, "kohya", 1.5, width=128, height=64, steps=6),
    ]
    pictures = crowd.serve([Visitor(it, after_s=0.02 * at) for at, it in enumerate(asked)])
    for it, picture in zip(asked, pictures, strict=True):
        assert picture is not None
        assert off(picture, reference(it)) <= TOLERANCE, it


def test_diffusers_still_reads_files_as_we_expect(files: dict[str, Path]) -> None:
    """Whatever the format, its converter ends with the names that ours are sorted by."""
    for path in files.values():
        keys = ZImageLoraLoaderMixin.lora_state_dict(str(path.parent), weight_name=path.name)
        assert all(key.startswith("transformer.") and ".lora_" in key for key in keys)


@pytest.mark.parametrize("name", ["blueprint", "everywhere"])
def test_a_picture_that_begins_with_another_equals_diffusers_too(
    crowd: Crowd, reference: Callable[[ImageRequest], np.ndarray], name: str
) -> None:
    asked = request(3, name, image=inputs.picture(1, 64, 96), strength=0.9)
    (picture,) = crowd.serve([Visitor(asked)])
    assert picture is not None
    assert off(picture, reference(asked)) <= TOLERANCE
