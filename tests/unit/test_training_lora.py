"""The recipe of the shipped adapter: what it learns from, and a few steps of everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serve.adapters import FILES
from serve.settings import EMBEDDED_FOLDER, Settings
from training.lora import INK, PAPER, blueprint, main, prompts

SHIPPED = EMBEDDED_FOLDER / "adapters" / "blueprint.safetensors"


def test_a_blueprint_is_ink_where_colours_change_and_paper_elsewhere() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 16:] = 1.0
    drawn = blueprint(picture)[0]
    ink, paper = torch.tensor(INK) / 255, torch.tensor(PAPER) / 255
    assert torch.allclose(drawn[:, 16, 16], ink, atol=0.01)
    assert torch.allclose(drawn[:, 16, 4], paper * 0.8, atol=0.01)
    assert torch.allclose(drawn[:, 16, 28], paper * 1.25, atol=0.01)


def test_prompts_are_the_models_own_and_the_same_for_a_seed() -> None:
    made = prompts(50, seed=1)
    assert made == prompts(50, seed=1) != prompts(50, seed=2)
    assert any(" background" in text for text in made)
    assert any(" and a " in text for text in made)


def test_a_few_steps_make_a_file_that_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "style.safetensors"
    main(["--smoke", "--out", str(out)])
    file = FILES.open(Settings.model_validate({"adapters": {"style": str(out)}}), EMBEDDED_FOLDER)["style"]
    shipped = FILES.open(Settings.model_validate({"adapters": {"style": str(SHIPPED)}}), EMBEDDED_FOLDER)["style"]
    assert file.parameters == shipped.parameters
    assert SHIPPED.stat().st_size <= 300_000
    assert "loss" in capsys.readouterr().out
