from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from serve.engine import codec
from serve.engine.decode import Decoder
from serve.engine.open import Placement, load_decoder
from serve.messages import ImageFormat, ImageRequest
from serve.settings import EMBEDDED_FOLDER
from tests.exactness.reference import pipeline


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(EMBEDDED_FOLDER, Placement(torch.device("cpu"), torch.float32))


@pytest.fixture(scope="module")
def fox() -> torch.Tensor:
    """Final latents [16, 16, 16] of a real picture."""
    output = pipeline()(
        "a red fox on a yellow background",
        height=128,
        width=128,
        num_inference_steps=4,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    )
    return output.images[0]


def test_decoded_together_is_decoded_alone(decoder: Decoder, fox: torch.Tensor) -> None:
    others = [fox.flip(2), fox]
    together, alone = decoder.decode([fox, *others]), decoder.decode([fox])[0]
    assert together[0].shape == (128, 128, 3)
    assert np.abs(together[0].astype(int) - alone).max() <= 1
    assert np.abs(together[2].astype(int) - alone).max() <= 1


def test_a_preview_has_the_colours_of_the_picture(decoder: Decoder, fox: torch.Tensor) -> None:
    picture = decoder.decode([fox])[0].reshape(16, 8, 16, 8, 3).mean((1, 3))
    preview = decoder.preview(fox)
    assert preview.shape == (16, 16, 3)
    assert np.abs(preview - picture).mean() < 20


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_files_are_what_they_say(format: ImageFormat, decoder: Decoder, fox: torch.Tensor) -> None:
    pixels = decoder.decode([fox])[0]
    image = Image.open(BytesIO(codec.encode(pixels, format)))
    assert (image.format or "").lower() == format
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels)
    assert difference.max() == 0 if format == "png" else difference.mean() < 6


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_more_compression_is_less_file(format: ImageFormat, decoder: Decoder, fox: torch.Tensor) -> None:
    pixels = decoder.decode([fox])[0]
    sizes = [len(codec.encode(pixels, format, quality)) for quality in (0, 50, 100)]
    assert sizes == sorted(sizes)


def test_a_preview_file_has_the_size_of_its_picture(decoder: Decoder, fox: torch.Tensor) -> None:
    request = ImageRequest(model="m", prompt="p", width=128, height=128, steps=4, seed=1, output_format="webp")
    image = Image.open(BytesIO(codec.encode_preview(decoder.preview(fox), request)))
    assert (image.size, image.format) == ((128, 128), "WEBP")
