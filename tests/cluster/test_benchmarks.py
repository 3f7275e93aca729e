"""The commands of benchmarks/RESULTS.md still run, and print a figure. What it is says nothing here."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cluster.server import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

SHORT = (
    "adapters --side 64",
    "assets",
    "cache_hits --seconds 2 --clients 2",
    "dispatcher --jobs 40 --concurrency 8 --rounds 1",
    "encoding",
    "eta --jobs 10 --backlog 4",
    "overhead --rounds 1 --pictures 4",
    "overload --seconds 3 --times 4",
    "policies --rounds 1 --requests 8",
    "protocol_overhead --rounds 1 --requests 16",
    "scheduler --requests 40 --seeds 1",
    "watchers --watchers 20",
)


@pytest.mark.parametrize("line", SHORT)
def test_a_benchmark_runs(line: str) -> None:
    name, *options = line.split()
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"\d", done.stdout), done.stdout
