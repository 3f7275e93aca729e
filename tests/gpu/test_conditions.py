"""Adapters, ControlNets and input pictures on a CUDA device in bf16, held against the same requests in fp32 on the CPU.

What the CPU draws equals diffusers' pipelines (tests/exactness).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from serve.messages import ImageRequest
from serve.settings import Settings
from tests import adapter_files, control_files
from tests.exactness import inputs
from tests.exactness.crowd import Crowd, Visitor
from tests.gpu.test_gpu import PROMPTS, psnr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("conditions")
    return {
        "data": folder / "data",
        "warmup_sizes_px": (64, 128),
        "adapters": {"everywhere": str(adapter_files.diffusers(folder / "everywhere.safetensors", everything=True))},
        "controlnets": {kind: str(control_files.write(folder / kind, kind)) for kind in control_files.KINDS},
    }


@pytest.fixture(scope="module")
def on_gpu(options: dict[str, Any]) -> Iterator[Crowd]:
    with closing(Crowd(Settings.model_validate(options | {"device": "cuda"}))) as crowd:
        yield crowd


@pytest.fixture(scope="module")
def on_cpu(options: dict[str, Any]) -> Iterator[Crowd]:
    with closing(Crowd(Settings.model_validate(options | {"device": "cpu", "data": options["data"] / "cpu"}))) as crowd:
        yield crowd


def request(seed: int, **changes: Any) -> ImageRequest:
    plain = {"prompt": PROMPTS[seed % len(PROMPTS)], "width": 128, "height": 128, "steps": 8}
    return ImageRequest(model="z-image-turbo", seed=seed, **(plain | changes))


def controlled(seed: int, kind: str, **changes: Any) -> ImageRequest:
    asked = request(seed, controlnet=kind, controlnet_conditioning_scale=0.8, **changes)
    return replace(asked, control_image=inputs.picture(seed % 3, asked.width, asked.height))


def crowded() -> list[ImageRequest]:
    asked = [
        *(request(seed, adapter="everywhere", adapter_scale=0.7) for seed in range(4)),
        request(5, adapter="everywhere", guidance=3.0, negative_prompt="a blue cat"),
        *(controlled(seed, kind) for seed, kind in enumerate([*control_files.KINDS] * 2)),
        controlled(6, "plain", adapter="everywhere", adapter_scale=0.5),
        controlled(7, "own", guidance=3.0, negative_prompt="a blue cat"),
        request(8, image=inputs.picture(1, 128, 128), strength=0.7),
        request(9, image=inputs.picture(2, 128, 128), mask=inputs.mask(2, 128, 128), strength=0.9),
        replace(controlled(10, "plain"), image=inputs.picture(1, 128, 128), strength=0.7),
        replace(controlled(11, "own"), image=inputs.picture(1, 128, 128), mask=inputs.mask(1, 128, 128)),
        request(12),
    ]
    return [*asked, *(replace(it, width=128, height=64) for it in asked if not it.inputs)]


def test_pictures_of_a_mixed_crowd_are_close_to_fp32(on_gpu: Crowd, on_cpu: Crowd) -> None:
    """Twice, as shapes are recorded when they come again."""
    references = on_cpu.serve([Visitor(it) for it in crowded()])
    for _ in range(2):
        pictures = on_gpu.serve([Visitor(it) for it in crowded()])
        closeness = [psnr(one, other) for one, other in zip(pictures, references, strict=True)]  # type: ignore[arg-type]
        print(f"PSNR against fp32: median {median(closeness):.1f}, least {min(closeness):.1f} dB")
        assert median(closeness) >= 35
        assert min(closeness) >= 28


def test_a_large_picture_is_the_same_bytes_alone_and_in_a_crowd(on_gpu: Crowd) -> None:
    """Steps of other shapes and conditions are launched between its own, and ahead of their results."""
    wanted = [
        request(1, width=768, height=768),
        controlled(2, "plain", width=768, height=768),
        request(3, width=768, height=768, adapter="everywhere"),
    ]
    for _ in range(3):
        alone = [on_gpu.serve([Visitor(it)])[0] for it in wanted]
    together = on_gpu.serve([Visitor(it) for it in [*wanted, *crowded()]])
    for one, other in zip(alone, together, strict=False):
        assert one is not None
        assert other is not None
        assert np.array_equal(one, other)
