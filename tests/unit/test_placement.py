"""What a config's words mean for the machine that it is on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve.engine.open import Placement
from serve.errors import ConfigError
from serve.settings import Settings

CPU = torch.device("cpu")


def settings(**args: Any) -> Settings:
    return Settings.model_validate(args)


@pytest.mark.parametrize(
    ("args", "dtype"),
    [
        ({"device": "cpu"}, torch.float32),
        ({"device": "cpu", "precision": "bf16"}, torch.bfloat16),
        ({"device": "cuda", "text_encoder_device": "cpu"}, torch.float32),
        ({"device": "cuda", "text_encoder_device": "cpu", "precision": "fp8"}, torch.float32),
        ({"device": "cuda", "text_encoder_device": "cpu", "precision": "bf16"}, torch.bfloat16),
    ],
)
def test_prompts_are_encoded_where_they_are_told_to_be(args: dict[str, Any], dtype: torch.dtype) -> None:
    assert Placement.of_text(settings(**args)) == Placement(CPU, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_that_is_asked_for_and_missing_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        Placement.of_text(settings(device="cpu", text_encoder_device="cuda"))
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        Placement.choose(settings(device="cuda", text_encoder_device="cpu"))
    with pytest.raises(ConfigError, match=r"8\.9"):
        Placement.choose(settings(precision="fp8"))
