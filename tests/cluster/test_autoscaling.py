"""Two nodes on this machine: load makes a Denoiser appear on the second, its loss loses no job, quiet takes it back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.cluster.two_nodes import NODE, denoisers, deploy, served, two_nodes, wait_until
from tests.stores.conftest import new_database

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

QUIET_S = 6.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with two_nodes() as cluster:
        yield cluster


def test_replicas_follow_the_work_over_two_nodes(
    cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = new_database(request.getfixturevalue("postgresql"))
    url = deploy(served(tmp_path, database, autoscaling={"drain_s": 2.0, "quiet_s": QUIET_S}))
    second = next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" not in node["Resources"])
    with httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: answers(client), 90, "the service is ready")
        assert len(denoisers()) == 1
        jobs = [submit(client, number) for number in range(150)]
        wait_until(lambda: len(set(denoisers())) == 2, 60, "a Denoiser on each node")
        wait_until(lambda: ready_denoisers(client) == 2, 90, "both are ready")
        (lost,) = [node for node in cluster.worker_nodes if node.node_id == second]
        wait_until(lambda: placed_on(client, 2), 30, "both draw")
        cluster.remove_node(lost, allow_graceful=False)
        wait_until(lambda: second not in denoisers(), 30, "the second node is gone")
        cluster.add_node(**NODE)
        jobs += [submit(client, number) for number in range(150, 230)]
        wait_until(lambda: ready_denoisers(client) == 2, 60, "the node that came instead is used")
        asyncio.run(all_succeed(url, jobs))
        wait_until(lambda: ready_denoisers(client) == 1, 60, "quiet takes one back")
        metrics = client.get("/metrics").text
    (restarts,) = re.findall(r'zimage_replica_restarts_total\{deployment="Denoiser",model="[^"]+"\} (\S+)', metrics)
    assert float(restarts) == 1, "the lost one, not the one that was given up"


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def submit(client: httpx.Client, seed: int) -> str:
    body = {"prompt": "a cat", "size": "128x128", "num_inference_steps": 30, "seed": seed}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ready_denoisers(client: httpx.Client) -> int:
    return sum(replica["role"] == "denoiser" and replica["phase"] == "ready" for replica in replicas(client))


def placed_on(client: httpx.Client, count: int) -> bool:
    return sum(replica["role"] == "denoiser" and replica["images"] > 0 for replica in replicas(client)) == count


def replicas(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/stats").json()["replicas"]
    return found


async def all_succeed(url: str, jobs: list[str]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.timeout(300):
        for job_id in jobs:
            while (job := (await client.get(f"/v1/jobs/{job_id}")).json())["status"] not in ("succeeded", "failed"):
                await asyncio.sleep(0.2)
            assert job["status"] == "succeeded", job
