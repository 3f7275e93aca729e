"""Disks that are full, read-only or lie: refused in words, nothing else is harmed, well again by itself."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.conftest import Service
from tests.chaos.crowd import Crowd, crowd_of, drawn
from tests.chaos.faults import damage, filled, read_only
from tests.cluster.load import Undisturbed, fingerprint

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]

FOX = {"prompt": "a red fox on a yellow background", "size": "64x64"}


async def ask(url: str, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await client.post("/v1/images/generations", json=FOX | {"response_format": "url"} | body)


async def picture(url: str, link: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await client.get(link)


def well_explained(answer: httpx.Response, status: int, code: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert error["hint"]
    if code != "asset_corrupted":
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_full_disk_of_pictures_refuses_new_ones_and_shows_the_old(
    disks: Service, dice: random.Random, round: int
) -> None:
    kept = (await ask(disks.url)).json()["data"][0]["url"]
    async with crowd_of(disks.url, 24) as crowd:
        with filled(disks.pictures, leaving=dice.choice((0, 1 << 20))):
            well_explained(await ask(disks.url), 507, "store_full")
            assert (await picture(disks.url, kept)).status_code == 200
            jobs = await crowd.settled()
    assert {job["status"] for job in jobs} <= {"succeeded", "failed"}
    assert {job["error"]["code"] for job in jobs if job["status"] == "failed"} <= {"store_full"}
    await drawn(disks.url)


async def test_a_full_disk_of_the_job_store_loses_no_accepted_job(
    disks: Service, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    """What a write-ahead log has room for is still accepted."""
    async with crowd_of(disks.url, 24) as crowd:
        with filled(disks.data, leaving=0):
            fed = asyncio.create_task(crowd.submit(12))
            await asyncio.sleep(dice.uniform(1, 3))
            async with httpx.AsyncClient(base_url=disks.url, timeout=60) as client:
                assert (await client.get("/healthz")).status_code == 200
        await fed
        assert set(crowd.refusals) <= {503}
        await crowd.unharmed(undisturbed)


async def test_a_read_only_store_refuses_before_any_work(disks: Service, dice: random.Random, round: int) -> None:
    kept = (await ask(disks.url)).json()["data"][0]["url"]
    async with crowd_of(disks.url, 24) as crowd, read_only(disks.pictures):
        well_explained(await ask(disks.url), 503, "store_unavailable")
        assert (await picture(disks.url, kept)).status_code == 200
        jobs = await crowd.settled()
    assert {job["error"]["code"] for job in jobs if job["status"] == "failed"} <= {"store_unavailable"}
    await drawn(disks.url)


async def test_a_damaged_picture_is_never_served_and_is_drawn_again(
    service: Service, dice: random.Random, round: int
) -> None:
    seed = dice.randrange(1 << 30)
    first = await ask(service.url, seed=seed)
    link = first.json()["data"][0]["url"]
    whole = await picture(service.url, link)
    damage(file_of(service, first.headers["X-Asset-Id"]), dice)

    well_explained(await picture(service.url, link), 500, "asset_corrupted")
    again = await ask(service.url, seed=seed)
    assert again.headers["X-Cache"] == "miss"
    redrawn = await picture(service.url, again.json()["data"][0]["url"])
    assert fingerprint(redrawn.content) == fingerprint(whole.content)


def file_of(service: Service, asset_id: str) -> Path:
    (file,) = service.pictures.glob(f"images/*/*/{asset_id}.png")
    return file


async def test_damaged_metadata_is_an_error_of_this_picture_alone(
    service: Service, dice: random.Random, round: int
) -> None:
    seed = dice.randrange(1 << 30)
    first = await ask(service.url, seed=seed)
    file = file_of(service, first.headers["X-Asset-Id"]).with_suffix(".json")
    file.write_text(json.dumps(time.time())[: dice.randrange(10)])
    well_explained(await picture(service.url, first.json()["data"][0]["url"]), 500, "asset_corrupted")
    await drawn(service.url)
    assert (await Crowd(service.url).insist("GET", "/readyz")).status_code == 200
