"""Identical requests through Ray Serve: one generation, counted by what lies in the asset store and the job store."""

from __future__ import annotations

import asyncio
import sqlite3

import httpx
import pytest
from ulid import ULID

from tests.cluster.server import Server

pytestmark = pytest.mark.cluster

URL = "/v1/images/generations"


async def test_sixteen_identical_requests_at_once_are_one_generation(server: Server) -> None:
    body = {"prompt": f"a cat {ULID()}", "seed": 3, "size": "256x256", "num_inference_steps": 50}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        answers = await asyncio.gather(*(client.post(URL, json=body) for _ in range(16)))
        again = await client.post(URL, json=body)
    assert sorted(answer.headers["X-Cache"] for answer in answers) == ["join"] * 15 + ["miss"]
    assert again.headers["X-Cache"] == "hit"
    pictures = [answer.json()["data"][0] for answer in (*answers, again)]
    assert len({picture["b64_json"] for picture in pictures}) == 1
    assert len({picture["asset_id"] for picture in pictures}) == 17
    data = server.log.parent
    images = data / "assets" / "images"
    files = [next(images.rglob(f"{picture['asset_id']}.png")) for picture in pictures]
    assert len({file.stat().st_ino for file in files}) == 1  # what is drawn is written anew; links share their bytes
    with sqlite3.connect(data / "jobs.db") as jobs:
        uses = jobs.execute("SELECT cache FROM jobs WHERE search = ?", [body["prompt"].lower()]).fetchall()
    assert sorted(use for (use,) in uses) == ["hit", *["join"] * 15, "miss"]


async def test_whoever_leaves_others_get_their_picture(server: Server) -> None:
    body = {"prompt": f"a cat {ULID()}", "seed": 3, "size": "256x256", "num_inference_steps": 50}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        leader = asyncio.create_task(client.post(URL, json=body))
        await asyncio.sleep(0.3)
        follower = asyncio.create_task(client.post(URL, json=body))
        await asyncio.sleep(0.3)
        leader.cancel()
        answer = await follower
    assert answer.status_code == 200
    assert answer.headers["X-Cache"] in {"miss", "join"}
