"""Webhooks from the end of a job to the receiver: the real store, the real queue, a real HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI
from standardwebhooks import Webhook
from starlette.responses import Response

from serve.api.webhooks import open_courier
from serve.assets.links import open_links
from serve.assets.local import LocalAssets
from serve.errors import NotFound
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.store import store_of
from serve.messages import Delivery
from serve.settings import Settings
from serve.webhooks.courier import Courier
from serve.webhooks.signing import open_keys
from tests.unit.receiver import Receiver, receiving
from tests.unit.replicas import Replicas, beat, submitted


@dataclass
class Service:
    jobs: Dispatcher
    replicas: Replicas
    courier: Courier
    settings: Settings

    async def ended(self, url: str, **how: object) -> str:
        """A job that has succeeded."""
        job_id = await submitted(self.jobs, webhook_url=url, **how)
        for task_id in await self.replicas.settled():
            await self.replicas.finish(task_id)
        async for _ in self.jobs.watch(job_id):
            pass
        return job_id

    async def delivery(self, job_id: str, until: Callable[[Delivery], bool]) -> Delivery:
        async with asyncio.timeout(20):
            while True:
                webhook = (await self.jobs.get(job_id)).webhook
                if webhook is not None and until(webhook):
                    return webhook
                await asyncio.sleep(0.01)


Opens = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def opened(tmp_path: Path) -> Opens:
    """The same data at every call: leaving the block and entering another is a restart."""

    @asynccontextmanager
    async def open_service(**webhooks: object) -> AsyncIterator[Service]:
        settings = Settings(
            data=tmp_path,
            public_url="https://pictures.example.org",
            webhooks={"allow": ["127.0.0.0/8"], "retry_s": [0.05, 0.05]} | webhooks,
        )
        store, replicas = store_of(settings), Replicas()
        jobs = Dispatcher(settings, replicas, store, LocalAssets(settings.data / "assets"))
        await jobs.open()
        beat(jobs)
        courier = open_courier(settings, store, lambda _: None)
        courier.open()
        try:
            yield Service(jobs, replicas, courier, settings)
        finally:
            await courier.close()
            await jobs.close()

    return open_service


def delivered(delivery: Delivery) -> bool:
    return delivery.status == "delivered"


async def test_the_end_of_a_job_arrives_signed_with_the_whole_job(opened: Opens) -> None:
    async with receiving() as receiver, opened() as service:
        job_id = await service.ended(receiver.url())
        (got,) = await receiver.until(1)
        state = await service.delivery(job_id, delivered)
    secret = open_keys(service.settings).of("u")[0]
    event = Webhook(secret).verify(got.body, got.headers)
    unwrapped = OpenAI(api_key="none").webhooks.unwrap(got.body, got.headers, secret=secret)
    assert unwrapped.type == event["type"] == "job.succeeded"
    assert got.headers["webhook-id"] == f"msg_{job_id}"
    assert got.headers["content-type"] == "application/json"
    assert (event["job_id"], event["data"]["id"], event["data"]["status"]) == (job_id, job_id, "succeeded")
    assert event["timestamp"] == event["at"] == event["data"]["completed_at"]
    assert (state.attempts, state.last_status, state.last_error, state.next_attempt_at) == (1, 204, None, None)


async def test_links_are_made_when_it_is_sent_and_pictures_stay_where_they_are(opened: Opens) -> None:
    async with receiving() as receiver, opened() as service:
        job_id = await service.ended(receiver.url())
        (got,) = await receiver.until(1)
    (image,) = json.loads(got.body)["data"]["result"]["images"]
    assert set(image) == {"asset_id", "url", "thumbnail_url", "seed", "width", "height", "format", "bytes", "deleted"}
    base, query = image["url"].split("?")
    assert base == f"https://pictures.example.org/v1/assets/{job_id}-0"
    expires, signature = (part.split("=")[1] for part in query.split("&"))
    open_links(service.settings).verify(f"{job_id}-0", expires, signature, 0.0)


async def test_every_way_to_end_is_told(opened: Opens) -> None:
    async with receiving() as receiver, opened() as service:
        canceled = await submitted(service.jobs, webhook_url=receiver.url())
        await service.jobs.cancel(canceled)
        failed = await submitted(service.jobs, webhook_url=receiver.url())
        await service.replicas.fail((await service.replicas.settled())[-1], ValueError("broken"))
        expired = await submitted(service.jobs, webhook_url=receiver.url(), deadline_ms=200)
        got = await receiver.until(3)
    assert {(event["job_id"], event["type"]) for event in map(json.loads, (one.body for one in got))} == {
        (canceled, "job.canceled"),
        (failed, "job.failed"),
        (expired, "job.expired"),
    }


async def test_a_failure_is_tried_again_under_the_same_id(opened: Opens) -> None:
    receiver = Receiver([lambda: Response(status_code=500), lambda: Response(status_code=302)])
    async with receiving(receiver), opened() as service:
        job_id = await service.ended(receiver.url())
        state = await service.delivery(job_id, delivered)
    assert (state.attempts, len(receiver.got)) == (3, 3)
    assert {got.headers["webhook-id"] for got in receiver.got} == {f"msg_{job_id}"}
    for got in receiver.got:
        Webhook(open_keys(service.settings).of("u")[0]).verify(got.body, got.headers)


async def test_after_the_last_attempt_it_is_given_up_and_its_owner_sees_why(opened: Opens) -> None:
    receiver = Receiver([lambda: Response(status_code=503)] * 3)
    async with receiving(receiver), opened() as service:
        job_id = await service.ended(receiver.url())
        state = await service.delivery(job_id, lambda delivery: delivery.status == "failed")
    assert (state.attempts, state.last_status, state.last_error) == (3, 503, "it answered 503")
    assert len(receiver.got) == 3


async def test_who_is_gone_is_called_once(opened: Opens) -> None:
    receiver = Receiver([lambda: Response(status_code=410)])
    async with receiving(receiver), opened() as service:
        job_id = await service.ended(receiver.url())
        state = await service.delivery(job_id, lambda delivery: delivery.status == "failed")
    assert (state.attempts, state.last_status, len(receiver.got)) == (1, 410, 1)


async def test_retry_after_is_waited_for(opened: Opens) -> None:
    receiver = Receiver([lambda: Response(status_code=429, headers={"Retry-After": "3600"})])
    async with receiving(receiver), opened() as service:
        job_id = await service.ended(receiver.url())
        state = await service.delivery(job_id, lambda delivery: delivery.attempts == 1)
        ended = (await service.jobs.get(job_id)).completed_at
    assert state.status == "pending"
    assert state.next_attempt_at >= ended + 3600


async def test_what_could_not_be_sent_is_sent_after_a_restart(opened: Opens) -> None:
    async with receiving() as receiver:
        receiver.go.clear()
        async with opened() as service:
            job_id = await service.ended(receiver.url())
            await receiver.until(1)
        receiver.go.set()
        async with opened() as service:
            await service.delivery(job_id, delivered)
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert len(receiver.got) == 2


async def test_a_slow_receiver_holds_up_nobody_else(opened: Opens) -> None:
    allow = ["127.0.0.1", "localhost"]
    async with (
        receiving() as slow,
        receiving() as quick,
        opened(allow=allow, concurrency=3, concurrency_per_host=2) as service,
    ):
        slow.go.clear()
        for _ in range(6):
            await service.ended(slow.url())
        await slow.until(2)
        job_id = await service.ended(quick.url(host="localhost"))
        await service.delivery(job_id, delivered)
        assert len(slow.got) == 2
        slow.go.set()
        await slow.until(6)
    assert slow.most_at_once == 2


async def test_a_url_that_leads_inside_is_told_to_its_owner_and_nobody_is_called(opened: Opens) -> None:
    async with receiving() as receiver, opened(allow=["10.0.0.0/8"], retry_s=[]) as service:
        job_id = await service.ended(receiver.url())
        state = await service.delivery(job_id, lambda delivery: delivery.status == "failed")
    assert "not on the internet" in state.last_error
    assert receiver.got == []


async def test_a_job_that_was_deleted_is_not_told_of(opened: Opens) -> None:
    receiver = Receiver([lambda: Response(status_code=500)])
    async with receiving(receiver), opened(retry_s=[0.2]) as service:
        job_id = await service.ended(receiver.url())
        await receiver.until(1)
        await service.jobs.delete(job_id)
        await asyncio.sleep(0.4)
        with pytest.raises(NotFound):
            await service.jobs.get(job_id)
    assert len(receiver.got) == 1


async def test_before_the_end_it_waits_and_without_a_url_there_is_none(opened: Opens) -> None:
    async with opened() as service:
        waiting, none = [await submitted(service.jobs, webhook_url=url) for url in ("https://example.org/", None)]
        assert (await service.jobs.get(waiting)).webhook == Delivery(job_id=waiting, url="https://example.org/")
        assert (await service.jobs.get(none)).webhook is None


async def test_after_a_new_dispatcher_took_over_the_old_one_sends_no_more(opened: Opens) -> None:
    receiver = Receiver([lambda: Response(status_code=500)] * 50)
    async with receiving(receiver), opened(retry_s=[0.05] * 30) as service:
        newer = store_of(service.settings)
        job_id = await service.ended(receiver.url())
        await service.delivery(job_id, lambda delivery: delivery.attempts > 0)
        await newer.open()
        async with asyncio.timeout(10):
            while not service.courier.stopped:
                await asyncio.sleep(0.01)
        await newer.close()


async def test_what_falls_due_while_the_courier_looks_is_not_overlooked(
    opened: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store says late what is due: the retry, a second after the attempt, falls due while it does."""
    receiver = Receiver([lambda: Response(status_code=500, headers={"Retry-After": "1"})])
    async with receiving(receiver), opened(retry_s=[0.01]) as service:
        deliveries = service.courier._store.deliveries
        due = deliveries.due

        async def late(*args: float, **kwargs: object) -> list[Delivery]:
            found = await due(*args, **kwargs)
            await asyncio.sleep(0.7)
            return found

        monkeypatch.setattr(deliveries, "due", late)
        job_id = await service.ended(receiver.url())
        state = await service.delivery(job_id, delivered)
    assert state.attempts == 2
