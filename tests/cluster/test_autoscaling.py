"""Two nodes on this machine: load makes a Denoiser appear on the second, its loss loses no job, quiet takes it back."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.cluster.server import ROOT
from tests.ports import free_port
from tests.stores.conftest import new_database

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

NODE = {"num_cpus": 8, "object_store_memory": 10**8}
QUIET_S = 6.0
ENVIRONMENT = {
    "RAY_SERVE_WORKER_PROXY_HTTP_PORT": "0",
    "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.03",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_initial_delay_ms": "1000",
    "PYTHONPATH": str(ROOT),
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One Denoiser fits on each node."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    head = {**NODE, "resources": {"gpu_like": 1}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**NODE, resources={"gpu_like": 1})
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False, logging_level="ERROR")
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def config(port: int, data: Path, database: str) -> dict[str, Any]:
    """The shipped file, with the embedded model on small nodes, and a folder that both see."""
    shipped = yaml.safe_load((ROOT / "config" / "serve.cluster.yaml").read_text())
    shipped["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = shipped["applications"]
    for name in ("assets", "model", "device", "access"):
        del application["args"][name]
    application["args"] |= {
        "data": str(data),
        "shared_data": True,
        "database": database,
        "presets": None,
        "warmup_sizes_px": [64],
        "autoscaling": {"drain_s": 2.0, "quiet_s": QUIET_S},
    }
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        if deployment["name"] in ("Gateway", "Dispatcher", "TextEncoder"):  # which stay when the second node goes
            deployment["ray_actor_options"]["resources"] = {"node:__internal_head__": 0.01}
        if deployment["name"] == "Gateway":
            deployment |= {"num_replicas": 1}
        if deployment["name"] == "Denoiser":
            deployment["ray_actor_options"]["resources"] = {"gpu_like": 1}
            deployment["autoscaling_config"]["max_replicas"] = 2
    return shipped


def denoisers() -> list[str]:
    """The node of each that lives."""
    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    return [actor["Address"]["NodeID"] for actor in actors if "::zimage#Denoiser#" in actor["Name"]]


def wait_until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def test_replicas_follow_the_work_over_two_nodes(
    cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    settings = config(port, tmp_path, new_database(request.getfixturevalue("postgresql")))
    serve.start(proxy_location="HeadOnly", http_options=settings["http_options"])
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(settings))
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
        cluster.add_node(**NODE, resources={"gpu_like": 1})
        jobs += [submit(client, number) for number in range(150, 230)]
        wait_until(lambda: ready_denoisers(client) == 2, 60, "the node that came instead is used")
        asyncio.run(all_succeed(url, jobs))
        wait_until(lambda: ready_denoisers(client) == 1, 60, "quiet takes one back")
        metrics = client.get("/metrics").text
    (restarts,) = re.findall(r'zimage_replica_restarts_total\{deployment="Denoiser"\} (\S+)', metrics)
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
