import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from serve.api import events as door_events

URL = "/v1/jobs"
LONG = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 50, "n": 4}


@dataclass
class Sent:
    id: int
    event: str
    data: dict[str, Any]


async def sent(response: httpx.Response) -> AsyncIterator[Sent | str]:
    """Events, and comments as text."""
    block: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield line
        elif line:
            name, value = line.split(": ", 1)
            block[name] = value
        elif block:
            yield Sent(int(block["id"]), block["event"], json.loads(block["data"]))
            block = {}


async def all_events(client: httpx.AsyncClient, job: dict[str, Any], **headers: str) -> list[Sent]:
    async with client.stream("GET", job["urls"]["events"], headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return [event async for event in sent(response) if isinstance(event, Sent)]


async def test_a_snapshot_then_events_up_to_the_end(http, fox, picture):
    job = (await http.post(URL, json=fox | {"previews": 2, "output_format": "webp"})).json()
    events = await all_events(http, job)
    first, last = events[0], events[-1]
    assert first.data["data"].keys() == job.keys()
    assert first.event in {"job.queued", "job.started"}
    assert last.event == "job.succeeded"
    for event in events:
        assert set(event.data) == {"type", "job_id", "seq", "at", "data"}
        assert (event.data["type"], event.data["seq"], event.data["job_id"]) == (event.event, event.id, job["id"])
    assert [event.id for event in events] == sorted({event.id for event in events})
    previews = [event.data["data"] for event in events if event.event == "job.preview"]
    assert [(preview["image"], preview["index"], preview["format"]) for preview in previews] == [
        (0, 0, "webp"),
        (0, 1, "webp"),
    ]
    assert all(picture(preview["b64_json"]).format == "WEBP" for preview in previews)


async def test_events_add_up_to_the_job(http, fox):
    job = (await http.post(URL, json=fox)).json()
    for event in await all_events(http, job):
        job |= event.data["data"]
    now = (await http.get(job["urls"]["self"])).json()
    names = ("status", "queue", "progress", "timings", "error", "completed_at")
    assert {name: job[name] for name in names} == {name: now[name] for name in names}
    assert [image["asset_id"] for image in job["result"]["images"]] == [f"{job['id']}-0"]


async def test_positions_are_told_as_they_change(stuck, serving, fox):
    async with (
        stuck() as service,
        serving(service.app) as base_url,
        httpx.AsyncClient(base_url=base_url, timeout=10) as http,
    ):
        await http.post(URL, json=fox)
        await service.until(running=1)
        ahead, job = [(await http.post(URL, json=fox)).json() for _ in range(2)]
        async with http.stream("GET", job["urls"]["events"]) as response:
            events = sent(response)
            first = await anext(events)
            await http.post(ahead["urls"]["cancel"])
            second = await anext(events)
    assert (first.event, first.data["data"]["queue"]["position"]) == ("job.queued", 2)
    assert (second.event, second.data["data"]["queue"]["position"]) == ("job.position", 1)


async def test_who_comes_back_gets_what_was_missed(stuck, serving, fox):
    async with (
        stuck() as service,
        serving(service.app) as base_url,
        httpx.AsyncClient(base_url=base_url, timeout=10) as http,
    ):
        job = (await http.post(URL, json=fox)).json()
        await service.until(running=1)
        for resumed in ({"headers": {"Last-Event-ID": "1"}}, {"params": {"after": 1}}):
            async with http.stream("GET", job["urls"]["events"], **resumed) as response:
                event = await anext(sent(response))
            assert (event.id, event.event) == (2, "job.started")
            assert "id" not in event.data["data"]
        async with http.stream("GET", job["urls"]["events"], headers={"Last-Event-ID": "999"}) as response:
            assert (await anext(sent(response))).data["data"]["id"] == job["id"]


async def test_an_ended_job_is_one_event_and_then_nothing(http, fox):
    job = (await http.post(URL, json=fox, headers={"Prefer": "wait=60"})).json()
    [end] = await all_events(http, job)
    assert (end.event, end.data["data"]["result"]["cache"]) == ("job.succeeded", "miss")
    assert [event.event for event in await all_events(http, job, **{"Last-Event-ID": "1"})] == ["job.succeeded"]
    seen = await http.get(job["urls"]["events"], headers={"Last-Event-ID": str(end.id)})
    assert (seen.status_code, seen.content) == (204, b"")


async def test_leaving_the_events_leaves_the_job_alone(http, service, client):
    job = (await http.post(URL, json=LONG)).json()
    async with http.stream("GET", job["urls"]["events"]) as response:
        await anext(sent(response))
    await asyncio.sleep(0.3)
    assert (await client.get(job["urls"]["self"])).json()["status"] == "running"
    events = asyncio.create_task(all_events(http, job))
    await client.post(job["urls"]["cancel"])
    assert (await events)[-1].event == "job.canceled"


async def test_many_watch_one_job(http, fox):
    job = (await http.post(URL, json=fox | {"num_inference_steps": 30, "previews": 1})).json()
    watched = await asyncio.gather(*(all_events(http, job) for _ in range(8)))
    assert {events[-1].event for events in watched} == {"job.succeeded"}
    assert all(sum(event.event == "job.preview" for event in events) <= 1 for events in watched)


async def test_silence_is_broken_by_pings(stuck, serving, fox, monkeypatch):
    monkeypatch.setattr(door_events, "PING_EVERY_S", 0.05)
    async with (
        stuck() as service,
        serving(service.app) as base_url,
        httpx.AsyncClient(base_url=base_url, timeout=10) as http,
    ):
        job = (await http.post(URL, json=fox)).json()
        await service.until(running=1)
        async with http.stream("GET", job["urls"]["events"]) as response:
            events = sent(response)
            assert isinstance(await anext(events), Sent)
            assert [await anext(events) for _ in range(2)] == [": ping", ": ping"]


async def test_a_deleted_job_ends_its_events(http):
    job = (await http.post(URL, json=LONG)).json()
    events = asyncio.create_task(all_events(http, job))
    await asyncio.sleep(0.2)
    assert (await http.delete(job["urls"]["self"])).status_code == 204
    assert (await events)[-1].event == "job.canceled"


@pytest.mark.parametrize("last", ["x", "-1", "1.0", "9" * 16])
async def test_an_event_id_that_is_none_is_refused(client, refused, fox, last):
    job = (await client.post(URL, json=fox)).json()
    error = refused(await client.get(job["urls"]["events"], headers={"Last-Event-ID": last}), 400, "invalid_value")
    assert error["param"] == "Last-Event-ID"


async def test_head_does_not_wait_for_events(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        job = (await client.post(URL, json=fox)).json()
        async with asyncio.timeout(5):
            response = await client.head(job["urls"]["events"])
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Type"].startswith("text/event-stream")
