"""The same engine on a CUDA device, in bf16, held against fp32 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

from serve.messages import ImageRequest
from serve.settings import Settings
from tests.exactness.crowd import Crowd, Visitor
from tests.exactness.reference import draw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = ["a red fox on a yellow background", "a cat", "two hearts on a black background", "a robot " * 40]


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    error = float(np.mean((picture.astype(float) - reference.astype(float)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    crowd = Crowd(Settings(data=tmp_path_factory.mktemp("data"), device="cuda"))
    yield crowd
    crowd.close()


def requests() -> list[ImageRequest]:
    return [
        ImageRequest(
            model="z-image-turbo",
            prompt=prompt,
            width=side,
            height=128,
            steps=8,
            seed=seed,
            guidance=1.5 if seed % 3 == 0 else 0.0,
        )
        for seed, prompt in enumerate(PROMPTS * 4)
        for side in (64, 128, 256)
    ]


def test_bf16_pictures_of_a_crowd_are_close_to_fp32(crowd: Crowd) -> None:
    crowded = requests()
    pictures = crowd.serve([Visitor(request) for request in crowded])
    closeness = [psnr(picture, draw(request)) for picture, request in zip(pictures, crowded, strict=True)]
    print(f"PSNR against fp32: median {median(closeness):.1f}, least {min(closeness):.1f} dB")
    assert median(closeness) >= 35
    assert min(closeness) >= 28


def test_a_deterministic_picture_is_the_same_bytes_alone_and_in_a_crowd(crowd: Crowd) -> None:
    wanted = ImageRequest(
        model="z-image-turbo", prompt=PROMPTS[0], width=128, height=128, steps=8, seed=1, deterministic=True
    )
    (alone,) = crowd.serve([Visitor(wanted)])
    crowded = crowd.serve([Visitor(wanted), *(Visitor(request) for request in requests()[:20])])
    assert np.array_equal(alone, crowded[0])


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="the card has no FP8"
)
def test_fp8_pictures_look_like_those_of_fp32(tmp_path: Path) -> None:
    drawn = [request for request in requests() if request.width >= 128]
    crowd = Crowd(Settings(data=tmp_path, device="cuda", precision="fp8"))
    try:
        pictures = crowd.serve([Visitor(request) for request in drawn])
    finally:
        crowd.close()
    closeness = [psnr(picture, draw(request)) for picture, request in zip(pictures, drawn, strict=True)]
    print(f"PSNR of FP8 against fp32: median {median(closeness):.1f}, least {min(closeness):.1f} dB")
    assert median(closeness) >= 28
