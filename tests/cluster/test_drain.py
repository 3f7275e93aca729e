"""Ray Serve leaves a node behind HAProxy: its proxy says so on `/-/healthz`, and calls go elsewhere before it ends."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.balancers import PATH, Balancer, balancer
from tests.cluster.deploying import of
from tests.cluster.people import people
from tests.cluster.server import free_port
from tests.cluster.two_nodes import deploy, served, two_nodes, wait_until
from tests.stores.conftest import new_database

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

HEAD_ONLY = {"num_cpus": 0.1, "resources": {"node:__internal_head__": 0.01}}
ANYWHERE = {"num_cpus": 0.1}
GONE_S = 120.0


@dataclass(frozen=True, slots=True)
class Nodes:
    """A Gateway and a proxy on each of two; the second one has nothing else."""

    config: dict[str, Any]
    first: str
    second: str

    def gateways(self, count: int) -> None:
        of(self.config["applications"][0], "Gateway")["num_replicas"] = count
        deploy(self.config)

    def answer(self, url: str) -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def nodes(tmp_path: Path, postgresql: str) -> Iterator[Nodes]:
    if shutil.which("haproxy", path=PATH) is None:
        pytest.skip("there is no haproxy here: make test-deps")
    config = served(tmp_path, new_database(postgresql))
    config["proxy_location"] = "EveryNode"
    for name in ("Gateway", "Dispatcher", "TextEncoder", "Denoiser"):
        deployment = of(config["applications"][0], name)
        deployment["ray_actor_options"] = ANYWHERE if name == "Gateway" else HEAD_ONLY
        if name == "Denoiser":
            del deployment["autoscaling_config"]
    port = free_port()
    with two_nodes(RAY_SERVE_WORKER_PROXY_HTTP_PORT=str(port)):
        nodes = Nodes(config, f"http://127.0.0.1:{config['http_options']['port']}", f"http://127.0.0.1:{port}")
        nodes.gateways(2)
        wait_until(lambda: nodes.answer(nodes.first) and nodes.answer(nodes.second), 150, "both nodes answer")
        yield nodes


async def test_a_node_that_ray_serve_leaves_is_left_by_haproxy_before_it_ends(nodes: Nodes, tmp_path: Path) -> None:
    async with balancer("haproxy", tmp_path, nodes.first, nodes.second) as front, people(front.url):
        await asyncio.to_thread(nodes.gateways, 1)
        await _down(front)
        await asyncio.to_thread(wait_until, lambda: not nodes.answer(nodes.second), GONE_S, "its proxy has ended")
    assert nodes.answer(nodes.first)


async def _down(front: Balancer) -> None:
    async with asyncio.timeout(GONE_S):
        while not (await front.servers())[1]["status"].startswith("DOWN"):
            await asyncio.sleep(0.2)
