"""config/serve.two.yaml as a user starts it: two models behind one port, each with its own processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.cluster.server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]  # tests/wiring has both models every time

TURBO, BASE = "z-image-turbo", "z-image-base"
LONG = {"model": BASE, "size": "256x256", "num_inference_steps": 50}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("data"), "config/serve.two.yaml")
    yield server
    server.stop()


@pytest.fixture
def client(two: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=two.url, timeout=60) as client:
        yield client


def drawn(client: httpx.Client, **wish: object) -> dict[str, Any]:
    body = {"prompt": "a red fox on a yellow background"} | wish
    answer = client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    assert job["status"] == "succeeded", job
    return job


def test_each_model_draws_in_processes_of_its_own(two: Server, client: httpx.Client) -> None:
    steps = {model: drawn(client, model=model)["request"]["num_inference_steps"] for model in (TURBO, BASE, "z-image")}
    assert steps == {TURBO: 8, BASE: 28, "z-image": 28}
    for deployment in ("TextEncoder", "Denoiser"):
        assert two.replica(f"{deployment}-{BASE}").pid in {process.pid for process in two.replicas(deployment)}
        assert len(two.replicas(deployment)) == 2
    metrics = client.get("/metrics").text
    assert f'nv_inference_count{{model="{BASE}",version="1"}} 2.0' in metrics
    assert f'nv_inference_count{{model="{TURBO}",version="1"}} 1.0' in metrics


def test_the_death_of_ones_denoiser_is_not_felt_by_the_other(two: Server, client: httpx.Client) -> None:
    jobs = [client.post("/v1/jobs", json={"prompt": "a fox", "seed": seed} | LONG).json()["id"] for seed in range(4)]
    two.wait_until(lambda: client.get(f"/v1/jobs/{jobs[0]}").json()["status"] == "running", 30, "it draws")
    two.replica(f"Denoiser-{BASE}").kill()
    attempts = [drawn(client, model=TURBO, seed=seed)["attempt"] for seed in range(4)]
    assert attempts == [1, 1, 1, 1]
    assert client.get("/readyz").status_code == 200
    two.wait_until(lambda: all(succeeded(client, job) for job in jobs), 120, "the jobs of the dead one are drawn")
    assert max(client.get(f"/v1/jobs/{job}").json()["attempt"] for job in jobs) == 2
    metrics = client.get("/metrics").text
    assert f'zimage_replica_restarts_total{{deployment="Denoiser",model="{BASE}"}} 1.0' in metrics
    assert f'zimage_replica_restarts_total{{deployment="Denoiser",model="{TURBO}"}} 0.0' in metrics


def succeeded(client: httpx.Client, job: str) -> bool:
    status = client.get(f"/v1/jobs/{job}").json()["status"]
    assert status in ("queued", "running", "succeeded"), status
    return bool(status == "succeeded")
