"""Processes that die, hang or are killed by what they draw: every accepted job ends as if nothing had been."""

from __future__ import annotations

import asyncio
import random

import httpx
import psutil
import pytest

from tests.chaos.conftest import Service
from tests.chaos.crowd import Crowd, crowd_of, drawn
from tests.chaos.faults import stopped
from tests.chaos.poison.sitecustomize import DEADLY
from tests.cluster.load import Undisturbed

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]

REPLICAS = ("Gateway", "Dispatcher", "TextEncoder", "Denoiser")
OTHERS = ("ray::ProxyActor", "ray::ServeController")
REPLACED_S = 120.0


@pytest.mark.nightly
async def test_a_prompt_that_kills_its_replica_fails_alone(
    service: Service, undisturbed: Undisturbed, round: int
) -> None:
    """Three replicas die of it, each time with nothing else on board from the second time on."""
    async with crowd_of(service.url, 6) as crowd:
        poisoned = Crowd(service.url)
        body = {"prompt": f"{DEADLY} on a red background", "size": "64x64"}
        poisoned.accepted[(await poisoned.insist("POST", "/v1/jobs", json=body)).json()["id"]] = 0
        (job,) = await poisoned.settled()
        assert (job["status"], job["error"]["code"]) == ("failed", "replica_lost"), job
        await crowd.unharmed(undisturbed)
    await all_there(service)
    await drawn(service.url)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", REPLICAS)
async def test_a_killed_replica_costs_no_job(
    kind: str, service: Service, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    async with crowd_of(service.url, 12) as crowd:
        await asyncio.sleep(dice.uniform(0, 2))
        victim = dice.choice(service.server.replicas(kind))
        victim.kill()
        await crowd.unharmed(undisturbed)
    await gone(service, victim)
    await all_there(service)
    await drawn(service.url)


@pytest.mark.nightly
@pytest.mark.parametrize("title", OTHERS)
async def test_a_killed_process_of_ray_serve_costs_no_job(
    title: str, service: Service, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    async with crowd_of(service.url, 12) as crowd:
        await asyncio.sleep(dice.uniform(0, 2))
        (victim,) = service.server.processes(title)
        victim.kill()
        await crowd.unharmed(undisturbed)
    await gone(service, victim)
    await asyncio.to_thread(
        service.server.wait_until, lambda: len(service.server.processes(title)) == 1, REPLACED_S, f"a new {title}"
    )
    await all_there(service)
    await drawn(service.url)


@pytest.mark.nightly
async def test_a_denoiser_that_hangs_is_replaced_and_its_jobs_go_on(
    service: Service, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    """Silent for five heartbeats it gets no more work; after three failed health checks it is ended."""
    async with crowd_of(service.url, 12) as crowd:
        await asyncio.sleep(dice.uniform(0, 2))
        victim = dice.choice(service.server.replicas("Denoiser"))
        with stopped(victim):
            await crowd.unharmed(undisturbed)
            await gone(service, victim)
    await all_there(service)
    await drawn(service.url)


@pytest.mark.nightly
async def test_a_denoiser_that_wakes_up_in_time_goes_on(
    service: Service, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    async with crowd_of(service.url, 12) as crowd:
        with stopped(dice.choice(service.server.replicas("Denoiser"))):
            await asyncio.sleep(dice.uniform(12, 15))
        await crowd.unharmed(undisturbed)
    await all_there(service)
    await drawn(service.url)


async def gone(service: Service, victim: psutil.Process) -> None:
    def ended() -> bool:
        return victim.pid not in {process.pid for process in service.server.processes()}

    await asyncio.to_thread(service.server.wait_until, ended, REPLACED_S, "the process has ended")


async def all_there(service: Service) -> None:
    """As many ready replicas as were configured."""

    def there() -> bool:
        try:
            queue = httpx.get(f"{service.url}/v1/queue", timeout=5).json()
        except (httpx.TransportError, ValueError):
            return False
        return bool(queue.get("replicas") == 2) and service.server.ready()

    await asyncio.to_thread(service.server.wait_until, there, REPLACED_S, "all replicas are there")
