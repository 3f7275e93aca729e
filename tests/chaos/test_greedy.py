"""One user asks for everything: whoever comes after him is next in turn. By the order of starts, not by the clock."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.conftest import configured
from tests.cluster.load import ENDED
from tests.cluster.server import ROOT, Server

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.nightly]

MAX_DEPTH_PER_USER = 30
MINE = 5
WINDOW = 8  # pictures that the one Denoiser is given ahead, and may begin in another order
BODY = {"prompt": "a red fox", "num_inference_steps": 4, "cache": "skip"}


@dataclass(frozen=True, slots=True)
class Guarded:
    url: str
    keys: dict[str, str]

    def of(self, name: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.keys[name]}"}
        return httpx.AsyncClient(base_url=self.url, timeout=60, headers=headers)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("greedy")
    queue = {"max_depth": 100, "max_depth_per_user": MAX_DEPTH_PER_USER}
    config = configured(folder, denoisers=1, queue=queue, access={"mode": "required"})
    people = {"admin": ["--role", "admin"], "greedy": [], "greedy's other": ["--user", "greedy"], "ada": []}
    keys = {name: key_of(name, *options, config=config, data=folder) for name, options in people.items()}
    server = Server.start(folder, config)
    yield Guarded(server.url, keys)
    server.stop()


def key_of(name: str, *options: str, config: Path, data: Path) -> str:
    where = ["--config", str(config), "--data", str(data)]
    command = [sys.executable, "-m", "serve.cli", "keys", "create", name, *options, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


async def test_one_greedy_user_does_not_push_another_beyond_her_turn(
    guarded: Guarded, dice: random.Random, round: int
) -> None:
    async with guarded.of("admin") as admin, guarded.of("ada") as ada:
        assert (await admin.post("/v1/admin/pause")).status_code == 200
        try:
            greedy, refused = await ask_for_everything(guarded, dice)
            mine = [await submitted(ada, dice) for _ in range(MINE)]
        finally:
            assert (await admin.post("/v1/admin/resume")).status_code == 200
        assert len(greedy) == MAX_DEPTH_PER_USER, "two keys are one user"
        assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
        jobs = await asyncio.gather(*(ended(admin, job_id) for job_id in [*greedy, *mine]))
    assert {job["status"] for job in jobs} == {"succeeded"}
    starts = {job["id"]: job["started_at"] for job in jobs}
    for turn, begun in enumerate(sorted(starts[job_id] for job_id in mine), 1):
        earlier = sum(starts[job_id] < begun for job_id in greedy)
        assert earlier <= turn + WINDOW, f"{earlier} pictures of the greedy one came before her number {turn}"


async def ask_for_everything(guarded: Guarded, dice: random.Random) -> tuple[list[str], list[httpx.Response]]:
    """The jobs that were let in, and the answers of the others."""
    async with guarded.of("greedy") as one, guarded.of("greedy's other") as other:
        asked = [dice.choice((one, other)).post("/v1/jobs", json=body(dice)) for _ in range(2 * MAX_DEPTH_PER_USER)]
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {202, 503}
    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    return accepted, [answer for answer in answers if answer.status_code == 503]


async def submitted(client: httpx.AsyncClient, dice: random.Random) -> str:
    answer = await client.post("/v1/jobs", json=body(dice))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def body(dice: random.Random) -> dict[str, Any]:
    return BODY | {"seed": dice.randrange(10**6), "size": dice.choice(("64x64", "128x128"))}


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(180):
        while True:
            job: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}", params={"wait": 20})).json()
            if job["status"] in ENDED:
                return job
