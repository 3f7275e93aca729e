"""The comparison with what people deploy, over one of them and ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.server import ROOT
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]
BASELINES = ROOT / ".venv-baselines/bin/python"


def test_the_comparison_runs_and_measures_both(tmp_path: Path) -> None:
    if not BASELINES.exists():
        pytest.skip("there is no .venv-baselines: make loadtest-deps")
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "loadtest.compare", "--quick", "--only", "flask,call", "--port", str(free_port())]
    done = subprocess.run(
        [*command, "--json", str(result)], cwd=ROOT, capture_output=True, text=True, timeout=480, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| | Flask, blocking | ours, one call |" in done.stdout
    (one,) = json.loads(result.read_text())
    for figures in one["figures"]:
        assert all(attempt["picture_s"] > 0 for attempt in figures["trace"])
        assert figures["stable_crowd"] > 0
        assert figures["peak_bytes"] > 10**8
        assert figures["cold_start_s"] > 1
    flask, ours = one["figures"]
    assert ours["again_s"] < flask["again_s"]
