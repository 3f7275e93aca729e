"""The wall clock jumps under a running service, as after a correction by NTP or a sleep of the machine."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.chaos.conftest import configured
from tests.chaos.crowd import crowd_of, drawn
from tests.cluster.load import Undisturbed
from tests.cluster.server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.nightly]

JUMPING = Path(__file__).parent / "clock"


@dataclass(frozen=True, slots=True)
class Clock:
    """What all processes of the service take for the time of day."""

    offset: Path

    def jump(self, seconds: int) -> None:
        aside = self.offset.with_suffix(".new")
        aside.write_text(str(seconds))
        aside.replace(self.offset)


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Clock]]:
    folder = tmp_path_factory.mktemp("clock")
    clock = Clock(folder / "offset")
    clock.jump(0)
    path = f"{JUMPING}:{os.environ.get('PYTHONPATH', '')}"
    environment = {"PYTHONPATH": path, "CLOCK_OFFSET": str(clock.offset)}
    server = Server.start(folder, configured(folder), environment=environment)
    yield server, clock
    server.stop()


async def test_a_clock_that_jumps_costs_no_job(
    clocked: tuple[Server, Clock], dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    server, clock = clocked
    seconds = dice.choice((-1, 1)) * dice.randrange(3600, 30 * 3600)
    async with crowd_of(server.url, 10) as crowd:
        patient = {"prompt": "a cat", "size": "64x64", "deadline_ms": 200_000}
        waiting = (await crowd.insist("POST", "/v1/jobs", json=patient)).json()["id"]
        clock.jump(seconds)
        await asyncio.sleep(2.5)
        await crowd.submit(4)
        jobs = await crowd.settled()
        assert {job["status"] for job in jobs} == {"succeeded"}
        assert all(value >= 0 for job in jobs for value in job["timings"].values())
        done = (await crowd.insist("GET", f"/v1/jobs/{waiting}", params={"wait": 60})).json()
        assert done["status"] == "succeeded"  # its deadline is a span, whatever the time of day
        await crowd.unharmed(undisturbed)
        clock.jump(0)
        await asyncio.sleep(2.5)
        await crowd.submit(4)
        await crowd.unharmed(undisturbed)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        assert (await client.get("/v1/queue")).json()["depth"] == 0
    await drawn(server.url)
