"""`make serve` starts beside anything, and ends with nothing left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.leftovers import running
from tests.cluster.server import ROOT, Server

pytestmark = pytest.mark.cluster


def test_a_killed_server_leaves_nothing_and_starts_again(tmp_path: Path):
    server = Server.start(tmp_path)
    port = server.url.rpartition(":")[2]
    session = Path(f"/tmp/zimage-{port}")
    command = [sys.executable, "-m", "deployments.run", "config/serve.yaml", "--port", port, "--data", str(tmp_path)]

    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    assert f"error: a server for port {port} is running already" in second.stderr

    assert running(session) != []
    server.process.kill()
    server.process.wait()
    server.wait_until(lambda: running(session) == [], 10, "all processes of the killed server have ended")

    with server.log.open("wb") as log:
        again = Server(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log), server.url, server.log)
    again.wait_until(again.ready, 120, "the server is ready again")
    again.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert again.process.wait(60) == 0
    assert time.monotonic() - began < 30  # fifteen on an idle machine
    assert server.log.read_text().endswith("stopping\nstopped\n")
    again.wait_until(lambda: running(session) == [], 10, "nothing is left")
