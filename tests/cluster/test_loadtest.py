"""Locust against the running product, and the comparison with two of the deployments."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.server import ROOT, Server, free_port

pytestmark = pytest.mark.cluster
LOCUST = ROOT / ".venv-loadtest/bin/python"
BASELINES = ROOT / ".venv-baselines/bin/python"
USERS_FILE = "loadtest/locustfile.py"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not the one of other tests: a load would change what they count."""
    if not LOCUST.exists():
        pytest.skip("there is no .venv-loadtest: make loadtest-deps")
    server = Server.start(tmp_path_factory.mktemp("data"))
    yield server
    server.stop()


def locust(
    server: Server, folder: Path, *arguments: str, files: str = "loadtest/locustfile.py"
) -> subprocess.Popen[str]:
    run = [str(LOCUST), "-m", "locust", "-f", files, "--host", server.url, "--headless", "--only-summary"]
    books = ["--csv", str(folder / "run"), "--settle-s", "60", *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*run, *books], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    return output


def statistics(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "run_stats.csv").open() as file:
        return {(line["Type"], line["Name"]): line for line in csv.DictReader(file)}


def test_everybody_gets_what_they_came_for(own: Server, tmp_path: Path) -> None:
    process = locust(
        own, tmp_path, "--users", "10", "--spawn-rate", "10", "--run-time", "20s", "--pace", "0.1", "--meeting-s", "5"
    )
    output = finished(process)
    assert process.returncode == 0, output
    assert " 0 lost" in output
    lines = statistics(tmp_path)
    for user, what in (("Designer", "time to picture"), ("Designer", "first byte"), ("Designer", "wait")):
        assert int(lines[user, what]["Request Count"]) > 0
    assert int(lines["Designer", "first preview"]["Request Count"]) > 0
    assert int(lines["MeetingGoer", "time to picture"]["Request Count"]) > 0
    assert int(lines["BatchScript", "time to picture"]["Request Count"]) > 0
    assert int(lines["GET", "/v1/assets/{id}/thumbnail"]["Request Count"]) > 0
    assert int(lines["POST", "/v1/jobs/{id}/cancel"]["Request Count"]) > 0
    assert int(lines["", "Aggregated"]["Failure Count"]) == 0


def test_an_open_loop_keeps_its_rate(own: Server, tmp_path: Path) -> None:
    rate = ("--rate", "2", "--arrivals", "even", "--run-time", "20s", "Arrivals")
    files = "loadtest/locustfile.py,loadtest/open_loop.py"
    process = locust(own, tmp_path, *rate, files=files)
    output = finished(process)
    assert process.returncode == 0, output
    arrived = int(statistics(tmp_path)["Arrivals", "first byte"]["Request Count"])
    assert 20 <= arrived <= 45  # 2 a second in 20 s, the first ones after up to 5 s


def test_a_lost_job_is_told_and_fails_the_run(own: Server, tmp_path: Path) -> None:
    with httpx.Client(base_url=own.url, timeout=30) as client:
        client.post("/v1/admin/pause").raise_for_status()
        try:
            process = locust(own, tmp_path, "--users", "2", "--spawn-rate", "2", "--run-time", "8s", "BatchScript")
            job_id = waiting(client)
            client.delete(f"/v1/jobs/{job_id}").raise_for_status()
        finally:
            client.post("/v1/admin/resume").raise_for_status()
    output = finished(process)
    assert process.returncode == 3, output
    assert f"lost: {job_id}: unknown to the service" in output


def waiting(client: httpx.Client) -> str:
    deadline = time.monotonic() + 60
    while not (jobs := client.get("/v1/jobs?status=queued").json()["data"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return str(jobs[0]["id"])


def test_no_service_is_a_clear_error(tmp_path: Path) -> None:
    if not LOCUST.exists():
        pytest.skip("there is no .venv-loadtest: make loadtest-deps")
    nobody = Server(process=None, url=f"http://127.0.0.1:{free_port()}", log=tmp_path)  # type: ignore[arg-type]
    process = locust(nobody, tmp_path, "--users", "1", "--run-time", "5s")
    assert "fix: make serve, or --host" in finished(process)
    assert process.returncode == 4


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
