"""A steady load of jobs whose users insist: each is sent again under its key until it is accepted."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from serve.local import open_service
from serve.messages import ImageRequest, Submission, Succeeded
from serve.settings import Settings
from tests.cluster.server import Server

DIFFERENT = 30  # wishes, over and over
ENDED = ("succeeded", "failed", "canceled", "expired")
GIVE_UP_S = 180.0


def wish(number: int) -> dict[str, Any]:
    """Every seventh has two pictures, every fifth previews. Alone on the device, it is the same bytes at any load."""
    return {
        "prompt": f"a cat on a {('red', 'blue', 'green', 'yellow')[number % 4]} background",
        "size": "64x64",
        "seed": 10 * number,
        "n": 2 if number % 7 == 0 else 1,
        "num_inference_steps": 10 if number % 7 == 0 else 20,
        "deterministic": True,
        "cache": "skip",
    }


def fingerprint(picture: bytes) -> str:
    """Of its pixels: a file may also say which job it belongs to."""
    with Image.open(BytesIO(picture)) as image:
        return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


class Undisturbed:
    """The same pictures from one process in which nothing dies, each drawn once."""

    def __init__(self, data: Path) -> None:
        self._settings = Settings(data=data, warmup_sizes_px=(64,))
        self._known: dict[int, list[str]] = {}

    async def pictures(self, numbers: set[int]) -> dict[int, list[str]]:
        async with open_service(self._settings) as service:
            for number in sorted(numbers - self._known.keys()):
                job_id = f"{number:026d}"
                body = wish(number)
                request = ImageRequest(
                    model="z-image-turbo",
                    prompt=body["prompt"],
                    width=64,
                    height=64,
                    steps=body["num_inference_steps"],
                    seed=body["seed"],
                    n=body["n"],
                    deterministic=True,
                )
                await service.submit(Submission(job_id=job_id, request=request, prompt_tokens=20))
                events = [event async for event in service.watch(job_id)]
                assert isinstance(events[-1], Succeeded)
                assets = [await service.assets.read(image.asset_id) for image in events[-1].images]
                self._known[number] = [fingerprint(asset.data) for asset in assets]
        return {number: self._known[number] for number in numbers}


@dataclass(slots=True)
class Accepted:
    job_id: str
    number: int
    canceled: bool = False


@dataclass
class Load:
    """Jobs of one service on one data folder, through all its lives; `standing` have not ended, all the time."""

    url: str
    standing: int = 50
    accepted: dict[str, Accepted] = field(default_factory=dict)
    _count: int = 0
    _feeding: asyncio.Task[None] | None = None
    _cancels: list[asyncio.Task[None]] = field(default_factory=list)

    async def begin(self) -> None:
        """Returns when the load stands."""
        await asyncio.gather(*(self._submit() for _ in range(self.standing - await self._waiting())))
        self._feeding = asyncio.create_task(self._feed())

    async def end(self) -> None:
        assert self._feeding is not None
        feeding, self._feeding = self._feeding, None
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)

    async def settled(self) -> None:
        """Returns when every job has ended."""
        await asyncio.gather(*self._cancels)
        async with asyncio.timeout(GIVE_UP_S):
            while await self._waiting():
                await asyncio.sleep(0.3)

    async def _feed(self) -> None:
        while True:
            if (missing := self.standing - await self._waiting()) > 0:
                await asyncio.shield(asyncio.gather(*(self._submit() for _ in range(missing))))
            await asyncio.sleep(0.3)

    async def _waiting(self) -> int:
        answer = await self._insist("GET", "/v1/queue")
        return int(answer["depth"]) + int(answer["running"])

    async def _submit(self) -> None:
        number, self._count = self._count, self._count + 1
        previews = {"previews": 2} if number % 5 == 0 else {}
        key = {"Idempotency-Key": secrets.token_hex(8)}
        job = await self._insist("POST", "/v1/jobs", json=wish(number % DIFFERENT) | previews, headers=key)
        self.accepted[job["id"]] = Accepted(job["id"], number % DIFFERENT)
        if number % 6 == 5:
            self._cancels.append(asyncio.create_task(self._cancel(job["id"], after_s=number % 4)))

    async def _cancel(self, job_id: str, after_s: float) -> None:
        """What its user was told counts: it had ended before, or is canceled."""
        await asyncio.sleep(after_s)
        job = await self._insist("POST", f"/v1/jobs/{job_id}/cancel")
        assert job["status"] in ("canceling", *ENDED), job
        self.accepted[job_id].canceled = job["status"] in ("canceling", "canceled")

    async def _insist(self, method: str, path: str, **how: Any) -> Any:
        async with asyncio.timeout(GIVE_UP_S):
            while True:
                try:
                    async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
                        answer = await client.request(method, path, **how)
                    if answer.is_success:
                        return answer.json()
                    assert answer.status_code >= 500 or answer.status_code == 429, answer.text
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.3)


async def under_load(load: Load, server: Server) -> None:
    """Some jobs run and many wait."""
    async with asyncio.timeout(60):
        while True:
            state = await asyncio.to_thread(server.state)
            if int(str(state["running"])) > 0 and int(str(state["queued"])) > load.standing // 2:
                return
            await asyncio.sleep(0.1)
