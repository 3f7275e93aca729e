import asyncio
import json
import socket
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serve.api import ws as door_ws

URL = "/v1/jobs"
UNKNOWN = "01K8Z3V7Q4M5N6P7R8S9T0VWXY"
LONG = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 50, "n": 4}


@pytest.fixture
def socket_url(base_url) -> str:
    return base_url.replace("http", "ws", 1) + "/v1/ws"


async def say(ws: ClientConnection, kind: str, jobs: Any) -> None:
    await ws.send(json.dumps({"type": kind, "jobs": jobs}))


async def hear(ws: ClientConnection) -> dict[str, Any]:
    return json.loads(await asyncio.wait_for(ws.recv(), 20))


async def hear_until(ws: ClientConnection, kind: str) -> list[dict[str, Any]]:
    heard = [await hear(ws)]
    while heard[-1]["type"] != kind:
        heard.append(await hear(ws))
    return heard


async def test_events_of_a_job_by_id(http, socket_url, base_url, fox, picture):
    job = (await http.post(URL, json=fox | {"previews": 1})).json()
    async with connect(socket_url) as ws:
        await say(ws, "subscribe", [job["id"]])
        subscribed, snapshot, *events = await hear_until(ws, "job.succeeded")
    assert subscribed == {"type": "subscribed", "jobs": [job["id"]]}
    assert snapshot["data"].keys() == job.keys()
    assert all(set(event) == {"type", "job_id", "seq", "at", "data"} for event in events)
    [preview] = [event["data"] for event in events if event["type"] == "job.preview"]
    assert picture(preview["b64_json"]).size == (128, 128)
    [image] = events[-1]["data"]["result"]["images"]
    assert image["url"].startswith(f"{base_url}/v1/assets/")
    assert len((await http.get(image["url"])).content) == image["bytes"]


async def test_mine_are_all_of_mine_and_those_to_come(http, socket_url, fox):
    running = (await http.post(URL, json=LONG)).json()
    async with connect(socket_url) as ws:
        await say(ws, "subscribe", "mine")
        assert await hear(ws) == {"type": "subscribed", "jobs": "mine"}
        assert (await hear(ws))["job_id"] == running["id"]
        await http.post(running["urls"]["cancel"])
        await hear_until(ws, "job.canceled")
        later = (await http.post(URL, json=fox)).json()
        events = await hear_until(ws, "job.succeeded")
    assert {event["job_id"] for event in events} == {later["id"]}
    assert events[0]["data"]["id"] == later["id"]


async def test_after_unsubscribing_nothing_comes(http, socket_url):
    job = (await http.post(URL, json=LONG)).json()
    async with connect(socket_url) as ws:
        for jobs in ([job["id"]], "mine"):
            await say(ws, "subscribe", jobs)
            await hear_until(ws, "job.progress")
            await say(ws, "unsubscribe", jobs)
            await hear_until(ws, "unsubscribed")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ws.recv(), 0.5)
    await http.post(job["urls"]["cancel"])


async def test_unsubscribing_mine_keeps_what_was_named(http, socket_url):
    job = (await http.post(URL, json=LONG)).json()
    async with connect(socket_url) as ws:
        await say(ws, "subscribe", [job["id"]])
        await say(ws, "subscribe", "mine")
        await say(ws, "unsubscribe", "mine")
        await hear_until(ws, "unsubscribed")
        await http.post(job["urls"]["cancel"])
        await hear_until(ws, "job.canceled")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hello", None),
        ("[]", None),
        ("", None),
        (b"\xff", None),
        ("{}", "type"),
        ('{"type": "shout", "jobs": "mine"}', "type"),
        ('{"type": "subscribe"}', "jobs"),
        ('{"type": "subscribe", "jobs": "all"}', "jobs"),
        ('{"type": "subscribe", "jobs": [1]}', "jobs"),
        (json.dumps({"type": "subscribe", "jobs": ["x"] * 201}), "jobs"),
        ("[" * 1000, None),
        (json.dumps({"type": "x" * 65_536}), None),
        (json.dumps({"type": "x" * 300_000}), None),
    ],
)
async def test_a_bad_message_is_answered_and_nothing_worse(socket_url, message, param):
    async with connect(socket_url) as ws:
        await ws.send(message)
        answer = await hear(ws)
        assert (answer["type"], answer["error"]["param"]) == ("error", param)
        assert set(answer["error"]) == {"message", "type", "param", "code", "hint", "request_id"}
        await say(ws, "unsubscribe", "mine")
        assert (await hear(ws))["type"] == "unsubscribed"


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [
        (None, True),
        ("http://{host}", True),
        ("https://pictures.example.org", True),
        ("https://pictures.example.org:443", True),
        ("https://studio.example.org:8443", True),
        ("http://pictures.example.org", False),
        ("https://studio.example.org", False),
        ("https://evil.example", False),
        ("http://{host}.evil.example", False),
        ("https://pictures.example.org.evil.example", False),
        ("http://127.0.0.1:1", False),
        ("http://[", False),
        ("null", False),
        ("", False),
    ],
)
async def test_only_pages_of_the_service_and_of_allowed_sites_get_in(stuck, serving, origin, let_in):
    sites = {"public_url": "https://pictures.example.org", "allowed_origins": ["https://studio.example.org:8443"]}
    async with stuck(**sites) as service, serving(service.app) as base_url:
        host = base_url.removeprefix("http://")
        said = None if origin is None else {"Origin": origin.format(host=host)}
        try:
            async with connect(f"ws://{host}/v1/ws", additional_headers=said) as ws:
                await say(ws, "unsubscribe", "mine")
                assert (await hear(ws))["type"] == "unsubscribed"
            got_in = True
        except InvalidStatus as refused:
            got_in = refused.response.status_code != 403
    assert got_in is let_in


async def test_an_unknown_job_is_said_by_its_id(socket_url):
    async with connect(socket_url) as ws:
        await say(ws, "subscribe", [UNKNOWN, "x"])
        assert (await hear(ws))["type"] == "subscribed"
        answers = [await hear(ws) for _ in range(2)]
    assert {answer["job_id"]: answer["error"]["code"] for answer in answers} == {
        UNKNOWN: "not_found",
        "x": "not_found",
    }


async def test_a_connection_follows_so_many_jobs_and_no_more(http, socket_url, monkeypatch):
    monkeypatch.setattr(door_ws, "MAX_FOLLOWED", 1)
    jobs = [(await http.post(URL, json=LONG)).json() for _ in range(2)]
    async with connect(socket_url) as ws:
        await say(ws, "subscribe", [job["id"] for job in jobs])
        error = (await hear(ws))["error"]
        await say(ws, "subscribe", [jobs[0]["id"]])
        assert (await hear(ws))["type"] == "subscribed"
    assert (error["param"], error["message"]) == ("jobs", "more than 1 jobs on one connection")
    for job in jobs:
        await http.post(job["urls"]["cancel"])


async def test_a_client_that_leaves_is_no_longer_listened_for(stuck, serving, fox):
    async with (
        stuck() as service,
        serving(service.app) as base_url,
        httpx.AsyncClient(base_url=base_url) as http,
    ):
        job = (await http.post(URL, json=fox)).json()
        before = len(asyncio.all_tasks())
        async with connect(base_url.replace("http", "ws", 1) + "/v1/ws") as ws:
            await say(ws, "subscribe", [job["id"]])
            await say(ws, "subscribe", "mine")
            await hear_until(ws, "job.started")
            assert len(asyncio.all_tasks()) > before
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0.02)
        assert (await http.get(job["urls"]["self"])).json()["status"] == "running"


async def test_a_slow_reader_is_told_to_come_again(stuck, serving, fox):
    async with (
        stuck() as service,
        serving(service.app) as base_url,
        httpx.AsyncClient(base_url=base_url) as http,
    ):
        job = (await http.post(URL, json=fox | {"prompt": "a fox " * 200})).json()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            address = base_url.removeprefix("http://").split(":")
            await asyncio.get_running_loop().sock_connect(slow, (address[0], int(address[1])))
            async with connect(base_url.replace("http", "ws", 1) + "/v1/ws", sock=slow, max_queue=1) as ws:
                with pytest.raises(ConnectionClosed) as closed:
                    await flood(ws, job["id"])
    assert closed.value.rcvd.code == 1013


async def flood(ws: ClientConnection, job_id: str) -> None:
    """Asks for one snapshot after another and reads none, then reads all that came."""
    for _ in range(5000):
        await say(ws, "subscribe", [job_id])
        await say(ws, "unsubscribe", [job_id])
    async with asyncio.timeout(30):
        while True:
            await ws.recv()
