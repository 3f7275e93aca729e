"""A Ray of two nodes on this machine: all but Denoisers is on the first, one Denoiser fits on each."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.cluster.server import ROOT
from tests.ports import free_port

NODE = {"num_cpus": 8, "object_store_memory": 10**8, "resources": {"gpu_like": 1}}
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


@contextmanager
def two_nodes(**environment: str) -> Iterator[Cluster]:
    """This process is a driver of it, and may add nodes and take them away."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | environment).items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False, logging_level="ERROR")
        try:
            yield cluster
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


def served(data: Path, database: str, **args: object) -> dict[str, Any]:
    """config/serve.cluster.yaml with the embedded model, and a folder that both nodes see."""
    shipped: dict[str, Any] = yaml.safe_load((ROOT / "config" / "serve.cluster.yaml").read_text())
    shipped["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    shipped["proxy_location"] = "HeadOnly"
    (application,) = shipped["applications"]
    for name in ("assets", "model", "device", "access"):
        del application["args"][name]
    own = {"data": str(data), "shared_data": True, "database": database, "presets": None, "warmup_sizes_px": [64]}
    application["args"] |= own | args
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1, "resources": {"node:__internal_head__": 0.01}}
        if deployment["name"] == "Gateway":
            deployment["num_replicas"] = 1
        if deployment["name"] == "Denoiser":
            deployment["ray_actor_options"]["resources"] = {"gpu_like": 1}
            deployment["autoscaling_config"]["max_replicas"] = 2
    return shipped


def deploy(config: dict[str, Any]) -> str:
    """The URL of the service, which may not be ready yet."""
    serve.start(proxy_location=config["proxy_location"], http_options=config["http_options"])
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
    return f"http://127.0.0.1:{config['http_options']['port']}"


def denoisers() -> list[str]:
    """The node of each that lives."""
    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    return [actor["Address"]["NodeID"] for actor in actors if "::zimage#Denoiser#" in actor["Name"]]


@contextmanager
def redis(program: str) -> Iterator[str]:
    """The address of one that keeps what it is told in memory."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def wait_until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
