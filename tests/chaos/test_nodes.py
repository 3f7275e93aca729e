"""The Ray under the service: one of two nodes dies, or the control plane that both share, or that of one machine."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from deployments.leftovers import running
from deployments.nodes import alive
from tests.chaos.conftest import configured
from tests.chaos.crowd import crowd_of, drawn
from tests.chaos.faults import stopped
from tests.cluster.deploying import home
from tests.cluster.load import Undisturbed
from tests.cluster.server import Server
from tests.cluster.two_nodes import NODE, deploy, redis, served, two_nodes, wait_until
from tests.stores.conftest import new_database

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.nightly]

ENDS_S = 60.0
REPLACED_S = 120.0


@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
async def test_without_its_ray_the_service_ends_and_its_jobs_go_on_at_the_next_start(
    program: str, dice: random.Random, undisturbed: Undisturbed, round: int, tmp_path: Path
) -> None:
    """On one machine. It says why, so that whoever supervises it starts it again; nothing is left in its way."""
    config = configured(tmp_path, denoisers=1)
    server = await asyncio.to_thread(Server.start, tmp_path, config)
    async with crowd_of(server.url, 8) as crowd:
        await asyncio.sleep(dice.uniform(0, 2))
        (victim,) = [process for process in server.processes() if process.name() == program]
        victim.kill()
        assert await asyncio.to_thread(server.process.wait, ENDS_S) != 0
        assert f"({program}) has died, and the service with it" in server.log.read_text()
        await asyncio.to_thread(server.wait_until, lambda: running(home(server)) == [], 30, "nothing is left")
        second = await asyncio.to_thread(Server.start, tmp_path, config)
        try:
            crowd.url = second.url
            await crowd.unharmed(undisturbed)
            await drawn(second.url)
        finally:
            await asyncio.to_thread(second.stop)


@dataclass(frozen=True, slots=True)
class Nodes:
    """A service on two, whose control plane keeps what it knows in Redis."""

    cluster: Cluster
    url: str

    def ready(self) -> list[str]:
        """Ids of Denoisers."""
        try:
            found: list[dict[str, Any]] = httpx.get(f"{self.url}/v1/stats", timeout=10).json()["replicas"]
        except (httpx.TransportError, ValueError, KeyError):
            return []
        return [replica["id"] for replica in found if (replica["role"], replica["phase"]) == ("denoiser", "ready")]

    async def all_there(self) -> None:
        await asyncio.to_thread(wait_until, lambda: len(self.ready()) == 2, REPLACED_S, "two Denoisers are ready")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, postgresql: str) -> Iterator[Nodes]:
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("there is no Redis here: make test-deps")
    with ExitStack() as stack:
        address = stack.enter_context(redis(program))
        cluster = stack.enter_context(two_nodes(RAY_REDIS_ADDRESS=address))
        config = served(tmp_path_factory.mktemp("nodes"), new_database(postgresql))
        (application,) = config["applications"]
        for deployment in application["deployments"]:
            if deployment["name"] == "Denoiser":
                del deployment["autoscaling_config"]
                deployment["num_replicas"] = 2
        yield Nodes(cluster, deploy(config))


async def test_a_killed_raylet_takes_its_node_along_and_costs_no_job(
    nodes: Nodes, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    await nodes.all_there()
    (lost,) = nodes.cluster.worker_nodes
    async with crowd_of(nodes.url, 12) as crowd:
        await asyncio.sleep(dice.uniform(0, 2))
        (raylet,) = lost.all_processes["raylet"]
        raylet.process.kill()
        raylet.process.wait()  # as a zombie it would seem to live
        await crowd.unharmed(undisturbed)
    nodes.cluster.remove_node(lost, allow_graceful=False)
    nodes.cluster.add_node(**NODE)
    await nodes.all_there()
    await drawn(nodes.url)


def is_denoiser(process: psutil.Process) -> bool:
    return "Denoiser" in " ".join(process.cmdline())


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # which its parent, stopped, leaves there


async def test_a_node_that_is_cut_off_from_the_control_plane_gets_no_more_work(
    nodes: Nodes, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    """Its raylet hangs; Ray gives the node up, whose Denoiser lives on and goes on telling the Dispatcher so."""
    await nodes.all_there()
    (lost,) = nodes.cluster.worker_nodes
    (raylet,) = lost.all_processes["raylet"]
    (denoiser,) = [process for process in psutil.Process(raylet.process.pid).children() if is_denoiser(process)]
    async with crowd_of(nodes.url, 12) as crowd:
        await asyncio.sleep(dice.uniform(0, 2))
        with stopped(psutil.Process(raylet.process.pid)):
            await asyncio.to_thread(wait_until, lambda: lost.node_id not in alive(), REPLACED_S, "it is given up")
            await crowd.submit(12)
            await crowd.unharmed(undisturbed)
            await drawn(nodes.url)
            await asyncio.to_thread(wait_until, lambda: not lives(denoiser), REPLACED_S, "it ends itself")
    nodes.cluster.remove_node(lost, allow_graceful=False)
    nodes.cluster.add_node(**NODE)
    await nodes.all_there()
    await drawn(nodes.url)


async def test_nobody_notices_that_the_control_plane_died_and_came_back(
    nodes: Nodes, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    await nodes.all_there()
    head = nodes.cluster.head_node
    async with crowd_of(nodes.url, 12) as crowd:
        head.kill_gcs_server()
        await drawn(nodes.url)
        await asyncio.sleep(dice.uniform(0, 5))
        head.start_gcs_server()
        await crowd.unharmed(undisturbed)
        assert crowd.refusals == []
    victim = dice.choice(nodes.ready())
    ray.kill(ray.get_actor(f"SERVE_REPLICA::zimage#Denoiser#{victim}", namespace="serve"))
    await asyncio.to_thread(wait_until, lambda: victim not in nodes.ready(), REPLACED_S, "it is given up")
    await nodes.all_there()  # somebody starts another one
    await drawn(nodes.url)
