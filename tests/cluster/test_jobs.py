"""Jobs and their events through Ray Serve: a job lives on when its submitter leaves, and any watcher sees it end."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.cluster.server import Server

pytestmark = pytest.mark.cluster

JOB = {"prompt": "a cat on a red background", "size": "128x128", "num_inference_steps": 30, "seed": 7}


async def test_a_job_is_followed_by_its_events_to_its_picture(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        accepted = await client.post("/v1/jobs", json=JOB)
        assert accepted.status_code == 202
        job = accepted.json()
        async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            lines = [line async for line in stream.aiter_lines()]
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert events[-1]["type"] == "job.succeeded"
        assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
        done = (await client.get(f"/v1/jobs/{job['id']}", params={"wait": 30})).json()
        assert done["status"] == "succeeded"
        picture = await client.get(done["result"]["images"][0]["url"])
    assert picture.headers["content-type"] == "image/png"


async def test_a_socket_hears_of_all_jobs(server: Server) -> None:
    async with (
        connect(f"{server.url.replace('http', 'ws')}/v1/ws") as socket,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        await socket.send(json.dumps({"type": "subscribe", "jobs": "mine"}))
        job = (await client.post("/v1/jobs", json=JOB | {"num_inference_steps": 8})).json()
        heard: list[str] = []
        async with asyncio.timeout(30):
            while "job.succeeded" not in heard:
                event = json.loads(await socket.recv())
                heard += [event["type"]] if event.get("job_id") == job["id"] else []
    assert heard.count("job.succeeded") == 1


async def test_an_idempotency_key_is_one_job(server: Server) -> None:
    key = {"Idempotency-Key": "the-same-order"}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        first = await client.post("/v1/jobs", json=JOB, headers=key)
        again = await client.post("/v1/jobs", json=JOB, headers=key)
        other = await client.post("/v1/jobs", json=JOB | {"seed": 8}, headers=key)
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 422)
    assert first.json()["id"] == again.json()["id"]
