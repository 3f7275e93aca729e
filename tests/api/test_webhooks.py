"""Webhooks as callers ask for them and see them, and what they are checked for when a job is taken in."""

import asyncio
import json

import pytest
from standardwebhooks import Webhook

from serve.api.webhooks import open_courier
from serve.jobs.store import store_of
from serve.settings import Settings
from tests.unit.receiver import receiving

URL = "/v1/jobs"
HOOK = "https://hooks.example.org/images?token=1"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.org/hook", "plain http"),
        ("https://127.0.0.1/hook", "127.0.0.1 is not on the internet"),
        ("https://[::1]/hook", "::1 is not on the internet"),
        ("https://169.254.169.254/latest", "not on the internet"),
        ("https://2130706433/", "not an address"),
        ("https://me:secret@example.org/", "user name or password"),
        ("https://example.org:25/", "port 25"),
        ("hook", "not an http or https URL"),
        ("https://example.org/" + "x" * 3000, "limit is 2048"),
        (7, "valid string"),
    ],
)
async def test_a_url_that_may_not_be_called_is_refused_at_once(client, refused, fox, url, says):
    error = refused(await client.post(URL, json=fox | {"webhook_url": url}), 400, "invalid_value")
    assert error["param"] == "webhook_url"
    assert says in error["message"]
    assert error["hint"]


async def test_a_job_shows_what_became_of_its_webhook(client, fox):
    body = fox | {"webhook_url": HOOK}
    job = (await client.post(URL, json=body, headers={"Prefer": "wait=60"})).json()
    webhook = job["webhook"]
    assert (job["status"], webhook["url"], webhook["status"], webhook["attempts"]) == ("succeeded", HOOK, "pending", 0)
    assert set(webhook) == {"url", "status", "attempts", "last_status", "last_error", "next_attempt_at"}
    [listed] = (await client.get(URL, params={"limit": 1})).json()["data"]
    assert listed["webhook"] == webhook


async def test_a_rerun_tells_only_who_is_named_again(client, fox):
    job = (await client.post(URL, json=fox | {"webhook_url": HOOK})).json()
    assert job["webhook"]["status"] == "waiting"
    again = (await client.post(f"{URL}/{job['id']}/rerun")).json()
    named = (await client.post(f"{URL}/{job['id']}/rerun", json={"webhook_url": HOOK})).json()
    assert again["webhook"] is None
    assert named["webhook"]["url"] == HOOK


async def test_another_url_under_the_same_key_is_another_body(client, refused, fox):
    headers = {"Idempotency-Key": "with-a-webhook"}
    bodies = [fox | {"webhook_url": HOOK}, fox | {"webhook_url": f"{HOOK}2"}, fox]
    assert (await client.post(URL, json=bodies[0], headers=headers)).status_code == 202
    assert (await client.post(URL, json=bodies[0], headers=headers)).status_code == 200
    for body in bodies[1:]:
        refused(await client.post(URL, json=body, headers=headers), 422, "idempotency_key_reused")


async def test_what_arrives_is_checked_with_the_secret_that_the_service_tells(stuck, door, settings, tmp_path, fox):
    """A job that is cancelled, told by the courier of the same store."""
    async with receiving() as receiver, stuck(webhooks={"allow": ["127.0.0.1"]}) as service:
        changed = Settings(**settings.model_dump() | {"webhooks": {"allow": ["127.0.0.1"]}})
        store = store_of(changed.model_copy(update={"data": tmp_path}))
        async with door(service.app) as client:
            job = (await client.post(URL, json=fox | {"webhook_url": receiver.url()})).json()
            await client.post(job["urls"]["cancel"])
            done = (await client.get(job["urls"]["self"], params={"wait": 10})).json()
            secret = (await client.get("/v1/webhook-secret")).json()
        await service.dispatcher.close()
        await store.open()
        courier = open_courier(changed, store, lambda _: None)
        courier.open()
        [got] = await receiver.until(1)
        await courier.close()
        await store.close()
    assert secret == {"object": "webhook.secret", "secret": secret["secret"], "previous_secret": None}
    event = Webhook(secret["secret"]).verify(got.body, got.headers)
    assert event["type"] == "job.canceled"
    assert {key for key in done if done[key] != event["data"][key]} == {"urls"}
    assert event["data"]["urls"]["self"] == f"/v1/jobs/{job['id']}"  # without `public_url`


async def test_the_end_of_a_watched_job_reaches_a_hundred_watchers(stuck, serving, fox):
    """Streams and sockets alike: all hear the end, and nobody is listened for afterwards."""
    import httpx
    from websockets.asyncio.client import connect

    async with stuck() as service, serving(service.app) as base_url:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=base_url, timeout=60, limits=limits) as http:
            job = (await http.post(URL, json=fox)).json()
            opened = 0

            async def stream() -> str:
                nonlocal opened
                async with http.stream("GET", job["urls"]["events"]) as response:
                    lines = response.aiter_lines()
                    await anext(lines)
                    opened += 1
                    return [line async for line in lines if line.startswith("event: ")][-1].removeprefix("event: ")

            async def socket() -> str:
                nonlocal opened
                async with connect(base_url.replace("http", "ws", 1) + "/v1/ws") as ws:
                    await ws.send(json.dumps({"type": "subscribe", "jobs": [job["id"]]}))
                    for _ in range(2):
                        await ws.recv()
                    opened += 1
                    while (kind := json.loads(await ws.recv())["type"]) != "job.canceled":
                        pass
                    return kind

            before = len(service.dispatcher._jobs[job["id"]].listeners)
            watchers = [asyncio.create_task(watch()) for watch in (stream, socket) for _ in range(50)]
            async with asyncio.timeout(60):
                while opened < 100:
                    await asyncio.sleep(0.02)
                assert len(service.dispatcher._jobs[job["id"]].listeners) == before + 100
                await http.post(job["urls"]["cancel"])
                heard = await asyncio.gather(*watchers)
    assert heard == ["job.canceled"] * 100
    assert service.dispatcher._jobs[job["id"]].listeners == set()
