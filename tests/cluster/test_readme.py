"""The README's commands, as they stand there, against the running server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cluster.server import ROOT, Server

pytestmark = pytest.mark.cluster

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
DEFAULT_URL = "http://127.0.0.1:8000"


def run(block: str, interpreter: list[str], server: Server, folder: Path) -> None:
    code = block.replace(DEFAULT_URL, server.url)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command, environment = [*interpreter, code], {"PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()


def pixels(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def test_the_first_curl_gives_a_fox_on_yellow(server: Server, tmp_path: Path) -> None:
    curl, preset, adapter = [block for language, block in BLOCKS if language == "bash" and "curl" in block]
    run(curl, ["bash", "-ec"], server, tmp_path)
    run(preset, ["bash", "-ec"], server, tmp_path)
    assert pixels(tmp_path / "wallpaper.png").shape == (144, 256, 3)
    run(adapter, ["bash", "-ec"], server, tmp_path)
    red, _, blue = pixels(tmp_path / "blueprint.png").mean((0, 1))
    assert blue > red + 50
    red, green, blue = pixels(tmp_path / "fox.png")[3, 3]
    assert red > 200
    assert green > 160
    assert blue < 120


def test_the_python_example_gives_a_penguin(server: Server, tmp_path: Path) -> None:
    (example,) = [block for language, block in BLOCKS if language == "python"]
    run(example, [sys.executable, "-c"], server, tmp_path)
    assert pixels(tmp_path / "penguin.png").shape == (256, 256, 3)


def test_zimage_draws_doctors_and_tells_its_version(server: Server, tmp_path: Path) -> None:
    (commands,) = [block for language, block in BLOCKS if language == "bash" and "zimage generate" in block]
    for command in commands.strip().splitlines():
        if "doctor" not in command:  # it looks for the default port, which a test must not depend on
            run(command, ["bash", "-ec"], server, tmp_path)
    assert pixels(tmp_path / "bananas.png").shape == (128, 128, 3)
