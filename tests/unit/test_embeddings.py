"""Embeddings that are remembered, over the real encoder of the embedded model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serve.engine.embeddings import ENTRY_BYTES, RememberingEncoder
from serve.engine.open import Placement, open_text_encoder
from serve.engine.text import Embedding
from serve.settings import EMBEDDED_FOLDER, Settings


class Counted:
    """Writes down what the real encoder is asked for."""

    def __init__(self, encoder: RememberingEncoder) -> None:
        self._encoder = encoder
        self.asked: list[list[str]] = []

    def encode(self, prompts: list[str]) -> list[Embedding]:
        self.asked.append(prompts)
        return self._encoder.encode(prompts)


@pytest.fixture(scope="module")
def real() -> RememberingEncoder:
    settings = Settings(cache={"embedding_bytes": 0})
    return open_text_encoder(settings, EMBEDDED_FOLDER, Placement(torch.device("cpu"), torch.float32))


@pytest.fixture
def counted(real: RememberingEncoder) -> Counted:
    return Counted(real)


def test_a_known_prompt_is_the_same_bits_without_a_forward(counted: Counted) -> None:
    encoder = RememberingEncoder(counted, 1 << 20)
    (first,) = encoder.encode(["a cat"])
    (again,) = encoder.encode(["a cat"])
    assert counted.asked == [["a cat"]]
    assert first.data.tobytes() == again.data.tobytes()
    assert first.seconds > again.seconds == 0.0
    assert encoder.find("a dog") is None


def test_only_what_is_new_in_a_batch_is_encoded_and_each_once(counted: Counted) -> None:
    encoder = RememberingEncoder(counted, 1 << 20)
    encoder.encode(["a cat"])
    batch = encoder.encode(["a dog", "a cat", "a dog", "a fox"])
    assert counted.asked[1:] == [["a dog", "a fox"]]
    assert batch[0].data.tobytes() == batch[2].data.tobytes() != batch[3].data.tobytes()


def test_bytes_are_bounded_and_the_least_recently_used_go_first(counted: Counted) -> None:
    (one,) = counted.encode(["cat"])
    encoder = RememberingEncoder(counted, 2 * (one.data.nbytes + ENTRY_BYTES))
    for prompt in ("cat", "dog", "cat", "fox"):
        encoder.encode([prompt])
    assert [encoder.find(prompt) is not None for prompt in ("cat", "dog", "fox")] == [True, False, True]


def test_without_bytes_nothing_is_kept(real: RememberingEncoder) -> None:
    (first,), (second,) = real.encode(["a cat"]), real.encode(["a cat"])
    assert real.find("a cat") is None
    assert np.array_equal(first.data, second.data)


def test_what_is_kept_cannot_be_changed_by_who_gets_it(counted: Counted) -> None:
    encoder = RememberingEncoder(counted, 1 << 20)
    encoder.encode(["a cat"])
    (known,) = encoder.encode(["a cat"])
    with pytest.raises(ValueError, match="read-only"):
        known.data[0] = 0
