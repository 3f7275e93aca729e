"""People who draw, put jobs in line and read, while the service is changed under them: they must not notice."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.cluster.deploying import deploy, of
from tests.cluster.server import Server

BODY = {"prompt": "a cat", "size": "64x64", "num_inference_steps": 8, "cache": "skip"}


@dataclass
class People:
    """Some draw, one puts jobs in line, one reads; all without a pause, and none tries anything twice."""

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
async def people(url: str, drawing: int = 3) -> AsyncIterator[People]:
    """Every call of theirs is answered, every job succeeds."""
    async with httpx.AsyncClient(base_url=url, timeout=150) as client:
        all_ = People(client)
        doing = [all_.draw] * drawing + [all_.line_up, all_.read]
        tasks = [asyncio.create_task(all_.keep(one)) for one in doing]
        await asyncio.sleep(3)
        yield all_
        await asyncio.sleep(3)
        all_.leaving = True
        await asyncio.gather(*tasks)
        assert [answer for answer in all_.answers if answer[1] not in (200, 202)] == []
        assert all_.jobs
        for job_id in all_.jobs:
            await succeeded(client, job_id)


async def succeeded(client: httpx.AsyncClient, job_id: str) -> None:
    async with asyncio.timeout(90):
        while (job := (await client.get(f"/v1/jobs/{job_id}")).json())["status"] in ("queued", "running"):
            await asyncio.sleep(0.2)
    assert job["status"] == "succeeded", job


async def until(server: Server, happened: Callable[[], bool], what: str, seconds: float = 120) -> None:
    await asyncio.to_thread(server.wait_until, happened, seconds, what)


def pids(server: Server) -> set[int]:
    names = ("Gateway", "Dispatcher", "TextEncoder", "Denoiser")
    return {process.pid for name in names for process in server.replicas(name)}


async def scaled(server: Server, wanted: int) -> None:
    """To so many Denoisers, which the Dispatcher knows."""

    def there() -> bool:
        return len(server.replicas("Denoiser")) == wanted and server.state()["denoisers"] == wanted

    await asyncio.to_thread(deploy, server, lambda app: of(app, "Denoiser").update({"num_replicas": wanted}))
    await until(server, there, f"{wanted} Denoisers")


def denoisers_lost(server: Server) -> float:
    """Until now, those not counted that were stopped on purpose."""
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    series = r'zimage_replica_restarts_total\{deployment="Denoiser",model="z-image-turbo"\} (\S+)'
    (found,) = re.findall(series, metrics)
    return float(found)
