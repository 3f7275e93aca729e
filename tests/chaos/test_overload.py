"""Far more than the service can draw: who is refused is told at once when to come back, who is accepted is served."""

from __future__ import annotations

import asyncio
import random
import re
import time

import httpx
import pytest

from tests.chaos.conftest import MAX_DEPTH, Service
from tests.chaos.crowd import Crowd, drawn

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]

OFFERED, PER_S = 200, 60.0
REFUSED_S = 5.0  # generous: here everything shares two cores; benchmarks/overload.py measures it
BODY = {"prompt": "a cat on a red background", "size": "128x128", "num_inference_steps": 16}


async def test_overload_is_refused_at_once_and_loses_nothing_that_was_accepted(
    service: Service, dice: random.Random, round: int
) -> None:
    refusals = await refusals_counted(service.url)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        answers = await flood(client, dice)
    accepted = [answer.json()["id"] for answer, _ in answers if answer.status_code == 202]
    refused = [(answer, seconds) for answer, seconds in answers if answer.status_code == 503]
    assert len(accepted) + len(refused) == OFFERED
    assert len(accepted) >= MAX_DEPTH
    assert len(refused) > OFFERED // 3
    for answer, _ in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
    assert sorted(seconds for _, seconds in refused)[len(refused) * 99 // 100] < REFUSED_S

    jobs = await Crowd(service.url, dict.fromkeys(accepted, 0)).settled()
    assert {job["status"] for job in jobs} == {"succeeded"}
    await drawn(service.url)
    assert await refusals_counted(service.url) - refusals == len(refused)  # also those that the Gateway said by itself


async def flood(client: httpx.AsyncClient, dice: random.Random) -> list[tuple[httpx.Response, float]]:
    """Each is sent at its time, whatever became of those before."""

    async def ask() -> tuple[httpx.Response, float]:
        began = time.perf_counter()
        return await client.post("/v1/jobs", json=BODY), time.perf_counter() - began

    asking = []
    for _ in range(OFFERED):
        asking.append(asyncio.create_task(ask()))
        await asyncio.sleep(dice.expovariate(PER_S))
    return await asyncio.gather(*asking)


async def refusals_counted(url: str) -> float:
    text = (await Crowd(url).insist("GET", "/metrics")).text
    found = re.search(r'^zimage_refusals_total{model="z-image-turbo",reason="queue_full"} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0
