"""`make serve` starts beside anything, and ends with nothing left but its jobs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from deployments.leftovers import running
from tests.cluster.audit import Books
from tests.cluster.server import ROOT, Server
from tests.ports import free_port

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


@pytest.mark.nightly
def test_jobs_go_on_after_a_stop_and_none_is_blamed(tmp_path: Path):
    server = Server.start(tmp_path)
    body = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 25, "guidance_scale": 2}
    ids = [httpx.post(f"{server.url}/v1/jobs", json=body | {"seed": seed}).json()["id"] for seed in range(6)]
    server.wait_until(lambda: int(str(server.state()["running"])) > 0, 60, "a job runs")
    server.stop()
    assert server.process.returncode == 0

    books = Books(tmp_path, None)
    left = books.jobs()
    books.close()
    assert [left[job_id]["crashes"] for job_id in ids] == [0] * 6
    assert {left[job_id]["status"] for job_id in ids} >= {"running", "queued"}

    server = Server.start(tmp_path)
    try:
        for job_id in ids:
            job = httpx.get(f"{server.url}/v1/jobs/{job_id}", params={"wait": 60}, timeout=90).json()
            assert job["status"] == "succeeded"
            assert job["attempt"] == (2 if left[job_id]["status"] == "running" else 1)
    finally:
        server.stop()


@pytest.mark.parametrize("after_s", [pytest.param(1.0, marks=pytest.mark.nightly), 3.0])
def test_a_stop_while_ray_starts_is_clean(tmp_path: Path, after_s: float):
    port = str(free_port())
    command = [sys.executable, "-m", "deployments.run", "config/serve.yaml", "--port", port, "--data", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        lines = [output.readline(), output.readline()]
        time.sleep(after_s)
        process.send_signal(signal.SIGTERM)
        said = output.read().splitlines()
    assert process.wait(60) == 0
    assert lines[1] == "starting: processes\n"
    assert [line for line in said if not line.startswith("starting: ")] in (["stopped"], ["stopping", "stopped"])
    Server.wait_until(lambda: running(Path(f"/tmp/zimage-{port}")) == [], 10, "nothing is left")
