"""ops/zimage.service, as systemd itself reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path("ops/zimage.service")


def test_systemd_takes_it_without_a_word(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    text = UNIT.read_text()
    assert text.count("/opt/zimage-serve/.venv/bin/python") == 1
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/zimage-serve/.venv/bin/python", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert UNIT.name not in done.stdout + done.stderr, done.stderr  # it may have a word to say on others


def test_whatever_ends_it_it_starts_again() -> None:
    """`deployments.run` ends when its Ray has died, and leaves it to others to start it."""
    lines = UNIT.read_text().splitlines()
    assert "Restart=always" in lines
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert start.split()[1:4] == ["-m", "deployments.run", "config/serve.yaml"]
