"""Quotas are counted with the jobs and given back with their ends, in whichever database."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from ulid import ULID

from serve.errors import QuotaExceeded
from serve.jobs import usage
from serve.jobs.record import JobRecord
from serve.jobs.store import SqlJobStore, store_of
from serve.messages import ErrorInfo, ImageRequest, JobStatus, StoredImage, Submission
from serve.quota import Amount, Quota
from serve.settings import Settings

IMAGE = StoredImage(asset_id="a-0", seed=5, width=64, height=96, format="webp", bytes=77)
PIXEL_STEPS = 64 * 96 * 8
NOON = 1_800_014_400.0 + 30  # 2027-01-15, half a minute past 12:00 UTC
TEN_A_DAY = Quota(images_per_day=10)


def record(n: int = 1, quota: Quota | None = TEN_A_DAY, at: float = NOON, **how: object) -> JobRecord:
    request = ImageRequest(model="m", prompt="a cat", width=64, height=96, steps=8, seed=5, n=n)
    submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=3, user="ada", quota=quota)
    return JobRecord(submission=replace(submission, **how), created_at=at)  # type: ignore[arg-type]


def pictures(job: JobRecord, count: int) -> tuple[StoredImage, ...]:
    return tuple(replace(IMAGE, asset_id=f"{job.id}-{image}") for image in range(count))


def ended(job: JobRecord, status: JobStatus, images: int = 0, started_at: float | None = None) -> JobRecord:
    return replace(
        job, status=status, completed_at=job.created_at + 1, images=pictures(job, images), started_at=started_at
    )


async def images(store: SqlJobStore, at: float = NOON) -> int:
    return (await store.usage("ada", at)).day.images


async def test_a_job_counts_its_images_and_their_work(store: SqlJobStore) -> None:
    await store.add(record(3))
    guided = record(2)
    request = replace(guided.submission.request, guidance=2.0)
    await store.add(replace(guided, submission=replace(guided.submission, request=request)))
    counted = await store.usage("ada", NOON)
    assert counted.day == counted.minute == Amount(images=5, pixel_steps=PIXEL_STEPS * (3 + 2 * 2))
    assert (await store.usage("bob", NOON)).day == Amount()


async def test_what_is_over_the_quota_is_refused_and_not_stored(store: SqlJobStore) -> None:
    await store.add(record(8))
    over = record(3)
    with pytest.raises(QuotaExceeded, match="3 images are over your quota of 10 a day, of which 2 are left") as refused:
        await store.add(over)
    assert refused.value.retry_after == 12 * 3600 - 30
    assert await store.get(over.id) is None
    await store.add(record(2))
    assert await images(store) == 10


async def test_of_jobs_that_come_at_once_no_more_pass_than_the_quota(store: SqlJobStore) -> None:
    outcomes = await asyncio.gather(*(store.add(record(3)) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, JobRecord) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, QuotaExceeded) for outcome in outcomes) == 17
    assert await images(store) == 9
    assert len(await store.unfinished()) == 3


@pytest.mark.parametrize(
    ("quota", "span_s"),
    [
        (Quota(images_per_minute=1), 60),
        (Quota(images_per_day=1), 86400),
        (Quota(pixel_steps_per_minute=PIXEL_STEPS), 60),
        (Quota(pixel_steps_per_day=PIXEL_STEPS), 86400),
    ],
)
async def test_each_limit_holds_for_its_span(store: SqlJobStore, quota: Quota, span_s: int) -> None:
    await store.add(record(quota=quota))
    last = NOON // span_s * span_s + span_s - 1
    with pytest.raises(QuotaExceeded) as refused:
        await store.add(record(quota=quota, at=last))
    assert refused.value.retry_after == 1
    await store.add(record(quota=quota, at=last + 1))


async def test_what_was_sent_twice_counts_once(store: SqlJobStore) -> None:
    job = record(4)
    await store.add(job)
    await store.add(job)
    keyed = [record(3, idempotency_key="k", body_sha256="b") for _ in range(3)]
    await store.add(keyed[0])
    await asyncio.gather(*map(store.add, keyed[1:]))
    assert await images(store) == 7


async def test_a_key_sent_twice_at_once_over_the_quota_is_refused_twice(store: SqlJobStore) -> None:
    keyed = [record(11, idempotency_key="k", body_sha256="b") for _ in range(2)]
    outcomes = await asyncio.gather(*map(store.add, keyed), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [QuotaExceeded] * 2
    assert await store.unfinished() == []


@pytest.mark.parametrize(
    ("status", "started_at", "drawn", "left"),
    [
        (JobStatus.FAILED, None, 0, 0),
        (JobStatus.FAILED, NOON, 0, 0),
        (JobStatus.CANCELED, None, 0, 0),
        (JobStatus.CANCELED, NOON, 0, 4),
        (JobStatus.EXPIRED, None, 0, 0),
        (JobStatus.EXPIRED, NOON, 0, 4),
        (JobStatus.SUCCEEDED, NOON, 4, 4),
        (JobStatus.SUCCEEDED, NOON, 3, 3),
    ],
)
async def test_what_was_not_drawn_is_given_back_once(
    store: SqlJobStore, status: JobStatus, started_at: float | None, drawn: int, left: int
) -> None:
    job = await store.add(record(4))
    for _ in range(2):
        await store.save(ended(job, status, drawn, started_at))
    counted = await store.usage("ada", NOON + 3600)
    assert counted.day == Amount(images=left, pixel_steps=left * PIXEL_STEPS)


async def test_a_refund_is_for_the_day_of_the_job(store: SqlJobStore) -> None:
    job = await store.add(record(4))
    await store.add(record(2, at=NOON + 86400))
    await store.save(
        replace(ended(job, JobStatus.FAILED), completed_at=NOON + 86400, error=ErrorInfo.of(QuotaExceeded("")))
    )
    assert [await images(store, NOON), await images(store, NOON + 86400)] == [0, 2]


async def test_counts_survive_a_restart_and_so_do_refunds(store: SqlJobStore, settings: Settings) -> None:
    job = await store.add(record(4))
    await store.add(record(5))
    await store.close()
    again = store_of(settings)
    await again.open()
    with pytest.raises(QuotaExceeded):
        await again.add(record(2))
    (left,) = [found for found in await again.unfinished() if found.id == job.id]
    await again.save(ended(left, JobStatus.CANCELED))
    await again.add(record(2))
    assert await images(again) == 7
    await again.close()


async def test_nothing_is_counted_while_access_is_open_and_nothing_for_what_came_from_the_cache(
    store: SqlJobStore,
) -> None:
    await store.add(record(quota=None))
    await store.add(ended(record(), JobStatus.SUCCEEDED, 1, NOON))
    assert await images(store) == 0


async def test_many_users_at_once_are_counted_in_one_commit(store: SqlJobStore) -> None:
    await asyncio.gather(*(store.add(record(user=f"user {number}")) for number in range(1500)))
    assert [(await store.usage(f"user {number}", NOON)).day.images for number in (0, 1499)] == [1, 1]


async def test_old_counts_are_forgotten(store: SqlJobStore) -> None:
    now = time.time()
    old, recent = now - (usage.KEPT_DAYS + 1) * 86400, now - 2 * 86400
    for at in (old, recent, now):
        await store.add(record(at=at))
    await store.prune(0)
    assert [await images(store, at) for at in (old, recent, now)] == [0, 1, 1]
    assert (await store.usage("ada", recent)).minute.images == 0
