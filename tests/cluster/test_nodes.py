"""Two Ray nodes on this machine, and a service whose data belongs to one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from deployments.app import build
from serve.errors import ConfigError
from serve.settings import Settings

pytestmark = pytest.mark.cluster

NODE = {"num_cpus": 8, "object_store_memory": 10**8}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setitem(os.environ, "RAY_SERVE_WORKER_PROXY_HTTP_PORT", "0")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False, logging_level="ERROR")
    yield cluster
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def replicas(deployment: str) -> dict[str, str]:
    """The node of each replica that lives, by its actor's name."""
    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    mine = [actor for actor in actors if f"::zimage#{deployment}#" in actor["Name"]]
    return {actor["Name"]: actor["Address"]["NodeID"] for actor in mine}


def test_several_nodes_need_a_database_and_a_shared_folder(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(**NODE)
    for settings, reason in (
        (Settings(data=tmp_path), "jobs are in SQLite, which works on one only and pictures are in a folder of one"),
        (Settings(data=tmp_path, shared_data=True), "jobs are in SQLite"),
        (Settings(data=tmp_path, database="postgresql+psycopg://db/jobs"), "pictures are in a folder of one"),
    ):
        with pytest.raises(ConfigError, match=f"Ray has 2 nodes, but {reason}") as refused:
            build(settings)
        assert refused.value.hint is not None
    build(Settings(data=tmp_path, database="postgresql+psycopg://db/jobs", shared_data=True))


@pytest.mark.nightly
def test_a_node_that_joins_later_is_not_used_and_is_told_of(cluster: Cluster, tmp_path: Path) -> None:
    home = ray.get_runtime_context().get_node_id()
    serve.start(proxy_location="Disabled")
    serve.run(build(Settings(data=tmp_path, warmup_sizes_px=(64,))), name="zimage", route_prefix=None)
    dispatcher = serve.get_deployment_handle("Dispatcher", "zimage")
    joined = cluster.add_node(**NODE).node_id

    def warned() -> bool:
        (warning,) = dispatcher.status.remote().result().warnings or ("",)
        return warning.startswith(f"nothing runs on node {joined[:8]}, as the data is on {home[:8]}")

    wait_until(warned)
    for name in ("Denoiser", "Dispatcher", "Gateway"):
        (before,) = replicas(name)
        ray.kill(ray.get_actor(before, namespace="serve"))
        wait_until(lambda: before not in replicas(name))  # noqa: B023
        wait_until(lambda: serves(name, home) and is_ready(dispatcher))  # noqa: B023


def serves(deployment: str, node: str) -> bool:
    """Its one replica runs, on that node."""
    status = serve.status().applications["zimage"].deployments[deployment]
    return status.replica_states == {"RUNNING": 1} and list(replicas(deployment).values()) == [node]


def is_ready(dispatcher: DeploymentHandle) -> bool:
    try:
        return dispatcher.status.remote().result(timeout_s=10).ready
    except (RayActorError, TimeoutError):
        return False


def wait_until(happened: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)
