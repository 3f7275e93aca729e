from __future__ import annotations

import numpy as np
import pytest
import torch

from serve.engine.embeddings import RememberingEncoder
from serve.engine.open import Placement, open_text_encoder
from serve.engine.text import Embedding, TextEncoder
from serve.settings import EMBEDDED_FOLDER, Settings
from tests.exactness.reference import pipeline

PROMPTS = ["", "a cat", "a red fox on a yellow background", "猫 🦊", "two cats and " * 60]


@pytest.fixture(scope="module")
def encoder() -> RememberingEncoder:
    return open_text_encoder(Settings(), EMBEDDED_FOLDER, Placement(torch.device("cpu"), torch.float32))


def test_a_batch_of_mixed_lengths_equals_the_pipelines_embeddings(encoder: RememberingEncoder) -> None:
    with torch.inference_mode():
        expected, _ = pipeline().encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    for embedding, reference in zip(encoder.encode(PROMPTS), expected, strict=True):
        assert embedding.tensor().shape == reference.shape
        assert (embedding.tensor() - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_travel_without_loss(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 12).to(dtype)
    embedding = Embedding.of(tensor, 0.1)
    assert embedding.data.dtype == (np.uint16 if dtype == torch.bfloat16 else np.float32)
    assert torch.equal(embedding.tensor(), tensor)


def test_what_stands_behind_a_prompt_changes_nothing(encoder: RememberingEncoder) -> None:
    """On a GPU lengths are rounded up, so that shapes come again."""
    plain = encoder._encoder
    assert isinstance(plain, TextEncoder)
    rounded = TextEncoder(plain._forward, plain._tokens, plain._device, multiple=32)
    for embedding, reference in zip(rounded.encode(PROMPTS), encoder.encode(PROMPTS), strict=True):
        assert embedding.tensor().shape == reference.tensor().shape
        assert (embedding.tensor() - reference.tensor()).abs().max() <= 1e-5 * reference.tensor().abs().max()
