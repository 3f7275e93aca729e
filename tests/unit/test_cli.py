"""`zimage` as its user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import structlog
import yaml
from PIL import Image, ImageDraw

from serve.cli import main
from serve.generate_settings import ADAPTERS, CONTROLNETS, settings_for

PICTURE = "docs/page.webp"
PRESETS = """
presets:
  - name: plan
    title: {en: Plan, zh: 蓝图}
    size: 64x64
    num_inference_steps: 4
    adapter: paper
    locked: [adapter]
"""


def zimage(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_one_picture_without_a_server(tmp_path: Path):
    output = tmp_path / "apple.png"
    done = zimage("generate", "a red apple on a yellow background", "--seed", "3", "--size", "64x96", "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{output}: 64x96, 8 steps, seed 3, drawn in ")
    with Image.open(output) as picture:
        assert picture.size == (64, 96)
        corner = np.asarray(picture)[:8, :8].mean(axis=(0, 1))
    assert corner[0] > 180  # yellow: much red, much green, little blue
    assert corner[1] > 150
    assert corner[2] < 120


def test_a_picture_begins_with_another_and_keeps_what_its_mask_leaves(tmp_path: Path):
    begin, mask, output = (tmp_path / name for name in ("navy.png", "mask.png", "fox.png"))
    Image.new("RGB", (96, 64), "navy").save(begin)
    left = np.zeros((64, 96), np.uint8)
    left[:, :48] = 255
    Image.fromarray(left).save(mask)
    how = ("--image", str(begin), "--mask", str(mask), "--strength", "0.75", "--seed", "5", "--adapter-scale", "0.5")
    done = zimage("generate", "a red fox on a yellow background", *how, "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{output}: 96x64, 6 steps, seed 5, drawn in ")
    assert "without effect here: adapter_scale" in done.stderr
    with Image.open(output) as picture:
        away = np.abs(np.asarray(picture).astype(int) - (0, 0, 128)).mean(axis=(0, 2))
    assert away[:40].mean() > 2 * away[60:].mean()


def test_a_picture_is_drawn_along_lines(tmp_path: Path):
    lines, output = tmp_path / "lines.png", tmp_path / "orange.png"
    with Image.new("RGB", (128, 96)) as drawn:
        ImageDraw.Draw(drawn).ellipse((4, 20, 60, 76), outline="white", width=2)
        drawn.save(lines)
    how = ("--controlnet", "lines", "--control-image", str(lines), "--controlnet-scale", "1", "--seed", "3")
    done = zimage("generate", "an orange on a white background", *how, "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{output}: 128x96, 8 steps, seed 3, drawn in ")
    with Image.open(output) as picture:
        assert "ControlNet: lines:1" in picture.text["parameters"]
        blue = np.asarray(picture.convert("RGB"))[..., 2].astype(int)
    assert blue[:, 68:].mean() > blue[36:60, 20:44].mean() + 60, "it is on the left, as its outline is"


def test_a_preset_and_the_adapters_of_a_config_file(tmp_path: Path):
    (tmp_path / "presets.yaml").write_text(PRESETS)
    args = {"adapters": {"paper": str(ADAPTERS / "blueprint.safetensors")}, "presets": str(tmp_path / "presets.yaml")}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"applications": [{"args": args}]}))
    how = ("--config", str(tmp_path / "serve.yaml"), "--preset", "plan", "--seed", "1")
    done = zimage("generate", "a red fox", *how, "-o", str(tmp_path / "fox.webp"))
    assert done.returncode == 0, done.stderr
    assert "fox.webp: 64x64, 4 steps, seed 1, drawn in " in done.stdout
    with Image.open(tmp_path / "fox.webp") as picture:
        red, _, blue = np.asarray(picture.convert("RGB")).mean(axis=(0, 1))
    assert blue > red + 40, "blue paper"


@pytest.mark.parametrize(
    ("args", "error", "fix"),
    [
        (["cat", "--size", "1000x64"], "size '1000x64': 1000 is over this model's 256 pixels", 'send size: "auto"'),
        (["cat", "--size", "big"], "size 'big': not WIDTHxHEIGHT", 'send size: "auto"'),
        ([" "], "prompt is blank", "say what the picture shows"),
        (["cat", "-o", "cat.gif"], "cannot write cat.gif", "name it with one of .png, .jpg, .jpeg, .webp"),
        (["cat", "-o", "no/such/cat.png"], "there is no folder no/such", "mkdir -p no/such"),
        (["cat", "--image", "no.png"], "image: cannot read no.png: No such file", "name a file that is there"),
        (["cat", "--image", "README.md"], "image is not a PNG, JPEG or WebP file", "send a PNG, JPEG or WebP file"),
        (["cat", "--mask", "no.png"], "mask is given without image", "name the picture that it belongs to: --image"),
        (["cat", "--adapter", "blueprnt"], "unknown adapter 'blueprnt'", "did you mean 'blueprint'?"),
        (["cat", "--adapter", "nope"], "unknown adapter 'nope'", "send one of: blueprint\n"),
        (
            ["cat", "--controlnet", "nope", "--control-image", PICTURE],
            "unknown controlnet 'nope'",
            "send one of: lines\n",
        ),
        (
            ["cat", "--controlnet", "lines"],
            "controlnet 'lines' is sent without control_image",
            "send the picture that it",
        ),
        (["cat", "--control-image", PICTURE], "control_image is sent without controlnet", "send one of: lines\n"),
        (
            ["cat", "--controlnet", "lines", "--control-image", "no.png"],
            "control_image: cannot read no.png",
            "name a file",
        ),
        (
            ["cat", "--controlnet", "no/such", "--control-image", PICTURE],
            "controlnet 'such': no/such is not on",
            "hf download",
        ),
        (["cat", "--preset", "nope"], "unknown preset 'nope'", ""),
        (["cat", "--model", "no/such"], "no/such is not on this machine", "zimage download no/such"),
    ],
)
def test_mistakes_are_told_with_their_fix(
    args: list[str], error: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In this process, which knows all modules already."""
    monkeypatch.setattr(sys, "argv", ["zimage", "generate", *args])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    configured = structlog.get_config()
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        structlog.configure(**configured)
    assert ended.value.code == 1
    first, second = capsys.readouterr().err.splitlines(keepends=True)
    assert error in first.removeprefix("error: ")
    assert second.startswith(f"fix: {fix}")


@pytest.mark.parametrize(
    ("adapter", "name"),
    [("blueprint", "blueprint"), ("/a/Ink Wash v2.safetensors", "ink-wash-v2"), ("org/Soft", "soft")],
)
def test_an_adapter_is_a_name_a_file_or_a_hub_id(adapter: str, name: str):
    settings, named, nothing = settings_for(None, {"threads": 2}, adapter)
    assert (named, nothing, settings.threads, settings.model) == (name, None, 2, "embedded")
    assert settings.adapters[name].weights == (str(ADAPTERS / "blueprint.safetensors") if name == adapter else adapter)


@pytest.mark.parametrize(("controlnet", "name"), [("lines", "lines"), ("/a/Depth 2", "depth-2"), ("org/Pose", "pose")])
def test_so_is_a_controlnet(controlnet: str, name: str):
    settings, _, named = settings_for(None, {}, controlnet=controlnet)
    assert named == name
    assert settings.controlnets[name].weights == (str(CONTROLNETS / "lines") if name == controlnet else controlnet)


@pytest.mark.parametrize(("model", "steps"), [(None, 8), ("z-image-turbo", 8), ("z-image-base", 28)])
def test_a_config_files_model_is_drawn_with_by_its_name(model: str | None, steps: int):
    settings, *_ = settings_for(Path("config/serve.two.yaml"), {} if model is None else {"model": model})
    assert (settings.model, settings.default_steps, settings.models) == ("embedded", steps, {})


def test_version():
    told = dict(line.split(None, 1) for line in zimage("version").stdout.splitlines())
    assert list(told) == ["zimage", "python", "torch", "diffusers", "transformers", "ray", "device"]
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))


def test_help_needs_nothing_heavy():
    code = (
        "import sys; import serve.cli as c\n"
        "try: c.app(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'ray', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
