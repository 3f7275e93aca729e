"""Jobs of users who insist, and who know what their pictures look like: what a fault must not take from them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.cluster.load import ENDED, Undisturbed, fingerprint, wish

DIFFERENT = 5
PATIENCE_S = 240.0


@dataclass
class Crowd:
    """Each call is repeated, under its key, while the service says that it is its own fault, or does not answer."""

    url: str
    accepted: dict[str, int] = field(default_factory=dict)
    refusals: list[int] = field(default_factory=list)

    async def submit(self, count: int) -> None:
        await asyncio.gather(*(self._submit(number % DIFFERENT + 1) for number in range(count)))

    async def settled(self) -> list[dict[str, Any]]:
        """All jobs, when they have ended."""
        return await asyncio.gather(*(self._settled(job_id) for job_id in self.accepted))

    async def unharmed(self, undisturbed: Undisturbed) -> None:
        """Every accepted job has succeeded with the pictures of a service to which nothing happened."""
        expected = await undisturbed.pictures(set(self.accepted.values()))
        for job in await self.settled():
            assert job["status"] == "succeeded", job
            pictures = [await self.insist("GET", image["url"]) for image in job["result"]["images"]]
            assert [fingerprint(answer.content) for answer in pictures] == expected[self.accepted[job["id"]]]

    async def insist(self, method: str, path: str, **how: Any) -> httpx.Response:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with httpx.AsyncClient(base_url=self.url, timeout=90) as client:
                        answer = await client.request(method, path, **how)
                    if answer.is_success:
                        return answer
                    assert answer.status_code in (500, 503, 507), answer.text
                    self.refusals.append(answer.status_code)
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.3)

    async def _submit(self, number: int) -> None:
        key = {"Idempotency-Key": secrets.token_hex(8)}
        job = (await self.insist("POST", "/v1/jobs", json=wish(number), headers=key)).json()
        self.accepted[job["id"]] = number

    async def _settled(self, job_id: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job: dict[str, Any] = (await self.insist("GET", f"/v1/jobs/{job_id}", params={"wait": 20})).json()
                if job["status"] in ENDED:
                    return job


async def begun(crowd: Crowd) -> None:
    """Some of its jobs run."""
    async with asyncio.timeout(60):
        while not (await crowd.insist("GET", "/v1/queue")).json()["running"]:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def crowd_of(url: str, count: int) -> AsyncIterator[Crowd]:
    """In the middle of its work."""
    crowd = Crowd(url)
    await crowd.submit(count)
    await begun(crowd)
    yield crowd


async def drawn(url: str) -> None:
    """Anybody's picture, at the first attempt: the service is well."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        answer = await client.post("/v1/images/generations", json={"prompt": "a cat", "size": "64x64"})
        assert answer.status_code == 200, answer.text
