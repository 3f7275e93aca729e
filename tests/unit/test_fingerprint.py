from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from serve import fingerprint as module
from serve.engine.identity import identity_of
from serve.fingerprint import fingerprint
from serve.settings import EMBEDDED_FOLDER

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "copy"))


def scale_one_tensor(folder: Path) -> None:
    tensors = load_file(folder / VAE)
    name = sorted(tensors)[3]
    save_file(tensors | {name: tensors[name] * 1.01 + 1e-3}, folder / VAE)


def change_a_config(folder: Path) -> None:
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("3.0", "4.0").replace(": 1000", ": 1001"))


@pytest.mark.parametrize("whole", [0, module.WHOLE_BYTES])
def test_it_is_of_the_content_and_not_of_the_place(copy: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", whole)
    assert fingerprint(copy) == fingerprint(EMBEDDED_FOLDER)


@pytest.mark.parametrize("whole", [0, module.WHOLE_BYTES])
@pytest.mark.parametrize("change", [scale_one_tensor, change_a_config])
def test_any_change_shows(
    copy: Path, monkeypatch: pytest.MonkeyPatch, whole: int, change: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", whole)
    before = fingerprint(copy)
    change(copy)
    assert fingerprint(copy) != before


def test_an_engine_is_known_by_its_device_and_precision_too() -> None:
    kinds = {identity_of(EMBEDDED_FOLDER, placement) for placement in ("cpu float32", "cpu bfloat16", "H200 bfloat16")}
    assert len(kinds) == 3
    assert identity_of(EMBEDDED_FOLDER, "cpu float32") in kinds
