"""Locust in its own environment against the whole service in this process."""

from __future__ import annotations

import asyncio
import csv
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from serve.api.app import create_app
from serve.local import open_service
from serve.settings import Settings
from tests.api.conftest import served
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
LOCUST = ROOT / ".venv-loadtest/bin/python"
FILE = "loadtest/locustfile.py"

pytestmark = pytest.mark.skipif(not LOCUST.exists(), reason="there is no .venv-loadtest: make loadtest-deps")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A service of its own, whose jobs nobody else counts."""
    settings = Settings(data=tmp_path_factory.mktemp("data"), warmup_sizes_px=(64,), timeouts={"heartbeat_s": 60})
    async with (
        open_service(settings) as service,
        served(create_app(service, service.assets, service.prompts, settings)) as url,
    ):
        yield url


@dataclass(frozen=True, slots=True)
class Run:
    code: int
    output: str
    lines: dict[tuple[str, str], dict[str, str]]  # by type and name
    failures: str

    def count(self, kind: str, name: str) -> int:
        return int(self.lines[kind, name]["Request Count"]) if (kind, name) in self.lines else 0


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}


async def locust(url: str, folder: Path, *arguments: str, files: str = FILE) -> Run:
    command = ["-m", "locust", "-f", files, "--host", url, "--headless", "--only-summary", "--csv", str(folder / "run")]
    process = await asyncio.create_subprocess_exec(
        LOCUST,
        *command,
        *arguments,
        cwd=ROOT,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 240)
    except TimeoutError:
        process.kill()
        raise
    lines = {}
    if (statistics := folder / "run_stats.csv").exists():
        lines = {(line["Type"], line["Name"]): line for line in csv.DictReader(statistics.read_text().splitlines())}
    failures = folder / "run_failures.csv"
    assert process.returncode is not None
    return Run(process.returncode, output.decode(), lines, failures.read_text() if failures.exists() else "")


async def test_everybody_gets_what_they_came_for(url, tmp_path):
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:  # the gallery is not empty
        (await client.post("/v1/images/generations", json={"prompt": "a cat"})).raise_for_status()
    users = ("--users", "12", "--spawn-rate", "12", "--run-time", "12s", "--pace", "0.3", "--meeting-s", "5")
    users += ("--seed", "1", "--stop-timeout", "120")  # who has begun, ends
    run = await locust(url, tmp_path, *users)
    assert run.code == 0, run.failures + run.output
    assert " 0 lost" in run.output
    assert run.count("Designer", "time to picture") > 0, run.output
    assert run.count("Designer", "first byte") >= run.count("Designer", "wait") > 0
    assert run.count("Designer", "first preview") > 0
    assert run.count("MeetingGoer", "time to picture") > 0
    assert run.count("BatchScript", "time to picture") > 0
    assert run.count("GET", "/v1/assets/{id}/thumbnail") > 0
    assert run.count("POST", "/v1/jobs/{id}/cancel") > 0
    assert run.lines["", "Aggregated"]["Failure Count"] == "0"


async def test_an_open_loop_keeps_its_rate(url, tmp_path):
    files = f"{FILE},loadtest/open_loop.py"
    arrivals = ("--rate", "1", "--arrivals", "even", "--run-time", "9s", "Arrivals")
    run = await locust(url, tmp_path, *arrivals, files=files)
    assert run.code == 0, run.failures + run.output
    assert 5 <= run.count("Arrivals", "first byte") <= 10  # one a second, the first of each five after up to 5 s


async def test_its_page_starts_the_chosen_users(url, tmp_path):
    port = free_port()
    page = ("--web-host", "127.0.0.1", "--web-port", str(port), "--class-picker", "--stop-timeout", "30")
    with (tmp_path / "log").open("wb") as log:
        command = [LOCUST, "-m", "locust", "-f", FILE, "--host", url, *page]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client, asyncio.timeout(90):
            assert "Locust" in (await answered(client, "/")).text
            chosen = {"user_count": "1", "spawn_rate": "1", "host": url, "user_classes": "BatchScript", "pace": "0.1"}
            assert (await client.post("/swarm", data=chosen)).json()["success"]
            while "time to picture" not in (found := (await client.get("/stats/requests")).text):
                await asyncio.sleep(0.2)
            assert "BatchScript" in found
            assert "Designer" not in found
            (await client.post("/stop")).raise_for_status()
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


async def answered(client: httpx.AsyncClient, path: str) -> httpx.Response:
    while True:
        try:
            return (await client.get(path)).raise_for_status()
        except httpx.TransportError:
            await asyncio.sleep(0.2)


async def test_a_lost_job_is_told_and_fails_the_run(url, tmp_path):
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        (await client.post("/v1/admin/pause")).raise_for_status()
        try:
            script = ("--users", "1", "--run-time", "6s", "--seed", "2", "BatchScript")
            running = asyncio.create_task(locust(url, tmp_path, *script))
            job_id = await queued(client)
            assert (await client.delete(f"/v1/jobs/{job_id}")).status_code == 204
        finally:
            (await client.post("/v1/admin/resume")).raise_for_status()
    run = await running
    assert run.code == 3, run.output
    assert f"lost: {job_id}: unknown to the service" in run.output
    assert "LOST     accepted job" in run.output


async def queued(client: httpx.AsyncClient) -> str:
    async with asyncio.timeout(60):
        while not (jobs := (await client.get("/v1/jobs?status=queued")).json()["data"]):
            await asyncio.sleep(0.1)
    return str(jobs[0]["id"])


async def test_no_service_is_a_clear_error(tmp_path):
    run = await locust("http://127.0.0.1:9", tmp_path, "--users", "1", "--run-time", "5s")
    assert run.code == 4, run.output
    assert "fix: make serve, or --host" in run.output
