"""`zimage` as its user runs it, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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


@pytest.mark.parametrize(
    ("args", "error", "fix"),
    [
        (["cat", "--size", "1000x64"], "size '1000x64': 1000 is over this model's 256 pixels", 'send size: "auto"'),
        (["cat", "--size", "big"], "size 'big': not WIDTHxHEIGHT", 'send size: "auto"'),
        ([" "], "prompt is blank", "say what the picture shows"),
        (["cat", "-o", "cat.gif"], "cannot write cat.gif", "name it with one of .png, .jpg, .jpeg, .webp"),
        (["cat", "-o", "no/such/cat.png"], "there is no folder no/such", "mkdir -p no/such"),
        (["cat", "--model", "no/such"], "no/such is not on this machine", "zimage download no/such"),
    ],
)
def test_mistakes_are_told_with_their_fix(args: list[str], error: str, fix: str):
    done = zimage("generate", *args)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert error in first.removeprefix("error: ")
    assert second.startswith(f"fix: {fix}")


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
