"""Webhooks to be sent: stored with the end of their job, in the same transaction, by both databases."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from serve.errors import StaleWriter
from serve.jobs.job import Job
from serve.jobs.record import JobRecord
from serve.jobs.store import SqlJobStore, store_of
from serve.messages import Delivery, JobStatus
from serve.settings import Settings
from tests.stores.test_job_store import record, reopened, succeeded

URL = "https://hooks.example.org/a"
LATER = 4e9


async def due(store: SqlJobStore, now: float = LATER, **how: object) -> list[str]:
    found = await store.deliveries.due(now, **{"limit": 99, "without": [], "hosts": []} | how)
    return [delivery.job_id for delivery in found]


async def ended(store: SqlJobStore, at: float = 1000.0, url: str | None = URL) -> JobRecord:
    job = await store.add(record(webhook_url=url))
    await store.save(succeeded(job, at))
    return job


async def test_a_delivery_is_there_with_the_end_of_its_job_and_not_before(store: SqlJobStore) -> None:
    job = await store.add(record(webhook_url=URL))
    await store.save(replace(job, status=JobStatus.RUNNING))
    assert await due(store) == []
    await store.save(succeeded(job, 1000.0))
    (delivery,) = await store.deliveries.due(LATER, limit=9, without=[], hosts=[])
    assert delivery == Delivery(job_id=job.id, url=URL, status="pending", next_attempt_at=1000.0)
    assert store.deliveries.changed.is_set()


async def test_a_job_that_is_added_with_its_end_is_delivered_too(store: SqlJobStore) -> None:
    job = succeeded(record(webhook_url=URL), 1000.0)
    await store.add(job)
    assert await due(store) == [job.id]


async def test_a_job_without_a_url_has_none(store: SqlJobStore) -> None:
    await ended(store, url=None)
    assert await due(store) == []
    assert not store.deliveries.changed.is_set()


async def test_an_end_that_is_saved_twice_is_delivered_once(store: SqlJobStore) -> None:
    job = await ended(store)
    (delivery,) = await store.deliveries.due(LATER, limit=9, without=[], hosts=[])
    await store.deliveries.save(
        replace(delivery, status="delivered", attempts=1, last_status=200, next_attempt_at=None)
    )
    await store.save(succeeded(job, 2000.0))
    assert await due(store) == []


async def test_what_was_not_delivered_is_due_after_a_restart(store: SqlJobStore, settings: Settings) -> None:
    job = await ended(store)
    (delivery,) = await store.deliveries.due(LATER, limit=9, without=[], hosts=[])
    tried = replace(delivery, attempts=2, last_status=500, last_error="it answered 500", next_attempt_at=3000.5)
    await store.deliveries.save(tried)
    store = await reopened(store, settings)
    assert await due(store, 3000.0) == []
    assert await store.deliveries.next_due(2000.0) == 3000.5
    assert await store.deliveries.due(3001.0, limit=9, without=[], hosts=[]) == [tried]
    record = await store.get(job.id)
    assert [view.webhook for view in await store.deliveries.shown([Job.restored(record).view()])] == [tried]
    await store.close()


async def test_the_longest_due_come_first_and_busy_hosts_are_left_out(store: SqlJobStore) -> None:
    urls = ["https://a.example/", "https://b.example:8443/x", "https://a.example/"]
    third, first, second = [await ended(store, at, url) for at, url in zip((30.0, 10.0, 20.0), urls, strict=True)]
    assert await due(store) == [first.id, second.id, third.id]
    assert await due(store, limit=2) == [first.id, second.id]
    assert await due(store, 15.0) == [first.id]
    assert await due(store, hosts=["a.example"]) == [first.id]
    assert await due(store, without=[first.id]) == [second.id, third.id]
    assert await store.deliveries.next_due(10.0) == 20.0
    assert await store.deliveries.next_due(30.0) is None


async def test_with_its_job_a_delivery_is_forgotten(store: SqlJobStore) -> None:
    deleted, old, kept = [await ended(store, at) for at in (1000.0, 100.0, 1000.0)]
    await store.delete(deleted.id)
    await store.prune(500.0)
    assert await due(store) == [kept.id]
    await store.deliveries.save(Delivery(job_id=old.id, url=URL, status="pending", next_attempt_at=1.0))
    assert await due(store) == [kept.id]


async def test_a_job_that_is_deleted_while_it_ends_leaves_nothing(store: SqlJobStore) -> None:
    job = await store.add(record(webhook_url=URL))
    await asyncio.gather(store.delete(job.id), store.save(succeeded(job)))
    assert await due(store) == []


async def test_a_writer_that_was_replaced_saves_no_attempt(store: SqlJobStore, settings: Settings) -> None:
    await ended(store)
    (delivery,) = await store.deliveries.due(LATER, limit=9, without=[], hosts=[])
    newer = store_of(settings)
    await newer.open()
    with pytest.raises(StaleWriter):
        await store.deliveries.save(replace(delivery, status="delivered", next_attempt_at=None))
    assert await due(newer, time.time()) == [delivery.job_id]
    await newer.close()
