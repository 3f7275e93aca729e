"""Clients that leave and processes that die: nobody's accepted request is lost."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.cluster.server import Server

pytestmark = pytest.mark.cluster

LONG = {"prompt": "a robot", "size": "256x256", "num_inference_steps": 50, "guidance_scale": 2}  # several seconds
SHORT = {"prompt": "a cat on a red background", "num_inference_steps": 30}


def idle(server: Server) -> bool:
    state = server.state()
    return bool(state["ready"]) and state["queued"] == state["running"] == 0


async def ask(server: Server, body: dict[str, object]) -> int:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        return (await client.post("/v1/images/generations", json=body)).status_code


async def busy(server: Server) -> None:
    await asyncio.to_thread(server.wait_until, lambda: int(str(server.state()["running"])) > 0, 20, "a job runs")


async def test_work_stops_when_its_clients_leave(server: Server) -> None:
    await asyncio.to_thread(server.wait_until, lambda: idle(server), 60, "the server is idle")
    clients = [asyncio.create_task(ask(server, LONG)) for _ in range(12)]  # half a minute and more of work
    await busy(server)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    await asyncio.to_thread(server.wait_until, lambda: idle(server), 10, "all work has stopped")


@pytest.mark.parametrize("deployment", ["Denoiser", "TextEncoder", "Dispatcher"])
async def test_a_killed_process_costs_no_request(server: Server, deployment: str) -> None:
    await asyncio.to_thread(server.wait_until, lambda: idle(server), 60, "the server is idle")
    clients = [asyncio.create_task(ask(server, SHORT)) for _ in range(10)]
    await busy(server)
    before = server.replica(deployment)
    before.kill()
    assert await asyncio.gather(*clients) == [200] * 10
    await asyncio.to_thread(server.wait_until, lambda: idle(server), 60, "the server has recovered")
    assert server.replica(deployment).pid != before.pid


async def test_a_killed_gateway_breaks_off_its_callers_but_not_their_jobs(server: Server) -> None:
    await asyncio.to_thread(server.wait_until, lambda: idle(server), 60, "the server is idle")
    clients = [asyncio.create_task(ask(server, SHORT | {"prompt": "a moth"})) for _ in range(6)]
    await busy(server)
    server.replica("Gateway").kill()
    assert await asyncio.gather(*clients) == [500] * 6
    await asyncio.to_thread(server.wait_until, lambda: answers(server) and idle(server), 60, "the server has recovered")
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        jobs = (await client.get("/v1/jobs", params={"q": "a moth"})).json()["data"]
    assert [job["status"] for job in jobs] == ["succeeded"] * 6


def answers(server: Server) -> bool:
    try:
        return server.ready()
    except httpx.TransportError:
        return False


async def test_a_deadline_that_cannot_be_met_is_refused_with_the_earliest(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        answer = await client.post("/v1/images/generations", json=LONG | {"deadline_ms": 5})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "deadline_infeasible"
    assert int(answer.headers["retry-after"]) >= 1
