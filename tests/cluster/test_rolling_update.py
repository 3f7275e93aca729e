"""Deploys while people draw: another number of replicas, other presets, a new version. Nobody notices."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.cluster.deploying import STATUS, deploy, of, run
from tests.cluster.server import ROOT, Server

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

BODY = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 8, "cache": "skip"}
PRESET = {"name": "sticker", "title": {"en": "New", "zh": "New"}, "size": "64x64", "num_inference_steps": 2}
GATEWAYS = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As a cluster has it: two Gateways, which finish what they have begun."""
    config = yaml.safe_load((ROOT / "config" / "serve.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= {"warmup_sizes_px": [64], "presets": None}
    of(application, "Gateway").update(num_replicas=GATEWAYS, graceful_shutdown_timeout_s=120)
    data = tmp_path_factory.mktemp("data")
    (data / "serve.yaml").write_text(yaml.safe_dump(config))
    server = Server.start(data, data / "serve.yaml")
    yield server
    server.stop()


@dataclass
class People:
    """Three draw, one puts jobs in line, one reads; all without a pause, and none tries anything twice."""

    client: httpx.AsyncClient
    answers: list[tuple[str, int | str]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    leaving: bool = False

    async def draw(self) -> None:
        await self._ask("POST", "/v1/images/generations", json=BODY | {"seed": secrets.randbelow(10**6)})

    async def line_up(self) -> None:
        answer = await self._ask("POST", "/v1/jobs", json=BODY | {"seed": secrets.randbelow(10**6)})
        if answer is not None and answer.status_code == 202:
            self.jobs.append(answer.json()["id"])
        await asyncio.sleep(0.5)

    async def read(self) -> None:
        await self._ask("GET", "/v1/queue")
        await self._ask("GET", "/readyz")
        await asyncio.sleep(0.2)

    async def keep(self, doing: Callable[[], Any]) -> None:
        while not self.leaving:
            await doing()

    async def _ask(self, method: str, path: str, **how: Any) -> httpx.Response | None:
        try:
            answer = await self.client.request(method, path, **how)
        except httpx.TransportError as error:
            self.answers.append((path, repr(error)))
            return None
        told = answer.status_code if answer.is_success else f"{answer.status_code} {answer.text[:300]}"
        self.answers.append((path, told))
        return answer


@asynccontextmanager
async def people(server: Server) -> AsyncIterator[People]:
    async with httpx.AsyncClient(base_url=server.url, timeout=150) as client:
        all_ = People(client)
        doing = [all_.draw] * 3 + [all_.line_up, all_.read]
        tasks = [asyncio.create_task(all_.keep(one)) for one in doing]
        await asyncio.sleep(3)
        yield all_
        await asyncio.sleep(3)
        all_.leaving = True
        await asyncio.gather(*tasks)
        assert {told for _, told in all_.answers} <= {200, 202}, [a for a in all_.answers if a[1] not in (200, 202)]
        assert all_.jobs
        for job_id in all_.jobs:
            await _succeeded(client, job_id)


async def _succeeded(client: httpx.AsyncClient, job_id: str) -> None:
    async with asyncio.timeout(90):
        while (job := (await client.get(f"/v1/jobs/{job_id}")).json())["status"] in ("queued", "running"):
            await asyncio.sleep(0.2)
    assert job["status"] == "succeeded", job


async def _until(server: Server, happened: Callable[[], bool], what: str, seconds: float = 120) -> None:
    await asyncio.to_thread(server.wait_until, happened, seconds, what)


def _pids(server: Server) -> set[int]:
    names = ("Gateway", "Dispatcher", "TextEncoder", "Denoiser")
    return {process.pid for name in names for process in server.replicas(name)}


def _rolled_out(server: Server) -> bool:
    found = json.loads(run(server, STATUS))
    assert found["status"] != "DEPLOY_FAILED", found
    return bool(found["status"] == "RUNNING")


async def test_another_number_of_replicas(served: Server) -> None:
    before = _pids(served)
    async with people(served) as all_:
        for wanted in (2, 1):
            count = {"num_replicas": wanted}
            await asyncio.to_thread(deploy, served, lambda app: of(app, "Denoiser").update(count))  # noqa: B023
            await _until(served, lambda: len(served.replicas("Denoiser")) == wanted, f"{wanted} Denoisers")  # noqa: B023
            await _until(served, lambda: int(str(served.state()["denoisers"])) == wanted, "it is known")  # noqa: B023
        metrics = (await all_.client.get("/metrics")).text
    assert len(before & _pids(served)) >= len(before) - 1, "nobody else was restarted"
    assert 'zimage_replica_restarts_total{deployment="Denoiser",model="z-image-turbo"} 0.0' in metrics


async def test_a_new_version_with_other_presets(served: Server, tmp_path: Path) -> None:
    """Every process is replaced, the Dispatcher too."""
    presets = tmp_path / "presets.yaml"
    presets.write_text(yaml.safe_dump({"presets": [PRESET]}))
    before = _pids(served)
    async with people(served) as all_:
        new = {"presets": str(presets), "default_steps": 6}
        await asyncio.to_thread(deploy, served, lambda app: app["args"].update(new))
        await _until(served, lambda: not before & _pids(served), "every process is a new one")
        await _until(served, lambda: _rolled_out(served), "the roll-out is over")
        shown = (await all_.client.get("/v1/presets")).json()["data"]
        metrics = (await all_.client.get("/metrics")).text
    assert [preset["title"]["en"] for preset in shown] == ["New"]
    assert 'zimage_replica_restarts_total{deployment="Denoiser",model="z-image-turbo"} 0.0' in metrics


async def test_a_stop_hands_accepted_jobs_to_the_next_start(tmp_path: Path) -> None:
    first = await asyncio.to_thread(Server.start, tmp_path)
    async with httpx.AsyncClient(base_url=first.url, timeout=60) as client:
        jobs = [(await client.post("/v1/jobs", json=BODY | {"seed": seed})).json()["id"] for seed in range(40)]
    began = time.monotonic()
    await asyncio.to_thread(first.stop)
    assert time.monotonic() - began < 60
    second = await asyncio.to_thread(Server.start, tmp_path)
    try:
        async with httpx.AsyncClient(base_url=second.url, timeout=60) as client:
            for job_id in jobs:
                await _succeeded(client, job_id)
    finally:
        await asyncio.to_thread(second.stop)
