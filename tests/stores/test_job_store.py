"""What every job store does, whichever database is below it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from ulid import ULID

from serve.errors import IdempotencyKeyReused, StaleWriter
from serve.jobs.commits import NOTE_S
from serve.jobs.record import JobRecord
from serve.jobs.store import KEYS_KEPT_S, SqlJobStore, store_of
from serve.jobs.tables import metadata
from serve.messages import ErrorInfo, ImageRequest, JobQuery, JobStatus, StoredImage, Submission, Timings
from serve.settings import Settings

IMAGE = StoredImage(asset_id="-0", seed=5, width=64, height=96, format="webp", bytes=77)
ERROR = ErrorInfo(status=400, code="c", type="t", message="m", param="size", hint="h", retry_after=3)


def record(prompt: str = "a cat", *, age_s: float = 0.0, **how: object) -> JobRecord:
    request = ImageRequest(model="m", prompt=prompt, width=64, height=96, steps=8, seed=5, guidance=1.5)
    submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=3, previews=2)
    return JobRecord(submission=replace(submission, **how), created_at=time.time() - age_s)  # type: ignore[arg-type]


def image_of(job: JobRecord) -> StoredImage:
    return replace(IMAGE, asset_id=f"{job.id}-0")


def succeeded(job: JobRecord, at: float | None = None) -> JobRecord:
    timings = Timings(queue_ms=1.5, total_ms=9.25)
    ended = at or time.time()
    return replace(job, status=JobStatus.SUCCEEDED, seq=9, completed_at=ended, images=(image_of(job),), timings=timings)


async def reopened(store: SqlJobStore, settings: Settings) -> SqlJobStore:
    await store.close()
    again = store_of(settings)
    await again.open()
    return again


async def test_what_was_added_and_saved_is_there_after_a_restart(store: SqlJobStore, settings: Settings) -> None:
    done, failed, waiting = record("☃ \0 '%_", deadline_ms=5, priority="batch"), record(parent_id="p"), record()
    for job in (done, failed, waiting):
        assert await store.add(job) == job
    done = replace(succeeded(done), started_at=12.5, attempt=3, losses=1)
    failed = replace(failed, status=JobStatus.FAILED, completed_at=99.5, error=ERROR)
    await store.save(done)
    await store.save(failed)
    store = await reopened(store, settings)
    assert [await store.get(job.id) for job in (done, failed, waiting)] == [done, failed, waiting]
    assert await store.get("unknown") is None
    await store.close()


async def test_the_unfinished_come_back_in_the_order_of_their_arrival(store: SqlJobStore) -> None:
    jobs = [record(age_s=age) for age in (1, 5, 3, 4)]
    await asyncio.gather(*map(store.add, jobs))
    await store.save(replace(jobs[2], status=JobStatus.RUNNING))
    await store.save(succeeded(jobs[3]))
    assert [job.id for job in await store.unfinished()] == [jobs[1].id, jobs[2].id, jobs[0].id]


async def test_a_note_is_saved_with_the_next_commit(store: SqlJobStore) -> None:
    job = await store.add(record())
    store.note(replace(job, status=JobStatus.RUNNING))
    await store.add(record())
    found = await store.get(job.id)
    assert found is not None
    assert found.status is JobStatus.RUNNING


async def test_a_note_is_found_before_its_commit_and_saved_without_another(store: SqlJobStore) -> None:
    job, other = await store.add(record()), await store.add(record())
    store.note(replace(job, status=JobStatus.RUNNING))
    assert [found.id for found in await store.find(JobQuery(statuses=frozenset({JobStatus.RUNNING})))] == [job.id]
    store.note(replace(other, status=JobStatus.RUNNING))
    await asyncio.sleep(NOTE_S + 0.5)
    assert [found.status for found in await store.unfinished()] == [JobStatus.RUNNING] * 2


async def test_a_job_that_has_ended_never_changes_again(store: SqlJobStore) -> None:
    ended = succeeded(await store.add(record()))
    await store.save(ended)
    await store.save(replace(ended, status=JobStatus.FAILED, images=()))
    assert await store.get(ended.id) == ended


async def test_adding_the_same_id_again_gives_the_job_as_it_is(store: SqlJobStore) -> None:
    job = await store.add(record())
    ended = succeeded(job)
    await store.save(ended)
    assert await store.add(job) == ended


@pytest.mark.parametrize("together", [True, False])
async def test_an_idempotency_key_makes_two_submissions_one_job(store: SqlJobStore, together: bool) -> None:
    first, again = [record(idempotency_key="k", body_sha256="b", user="u") for _ in range(2)]
    if together:
        stored = await asyncio.gather(store.add(first), store.add(again))
    else:
        stored = [await store.add(first), await store.add(again)]
    assert [job.id for job in stored] == [first.id] * 2
    assert await store.repeated(again.submission) == first
    assert len(await store.find(JobQuery())) == 1


async def test_an_idempotency_key_with_another_body_is_refused_and_others_in_its_commit_are_not(
    store: SqlJobStore,
) -> None:
    await store.add(record(idempotency_key="k", body_sha256="b"))
    other, bystander = record(idempotency_key="k", body_sha256="c"), record()
    refused, added = await asyncio.gather(store.add(other), store.add(bystander), return_exceptions=True)
    assert isinstance(refused, IdempotencyKeyReused)
    assert added == bystander
    with pytest.raises(IdempotencyKeyReused, match="'k'"):
        await store.repeated(other.submission)


async def test_idempotency_keys_are_each_users_own_and_end_after_a_day(store: SqlJobStore) -> None:
    old = record(idempotency_key="k", body_sha256="b", user="u", age_s=KEYS_KEPT_S + 1)
    other = record(idempotency_key="k", body_sha256="c", user="v")
    new = record(idempotency_key="k", body_sha256="d", user="u")
    assert await store.repeated(new.submission) is None
    for job in (old, other, new):
        assert await store.add(job) == job
    assert await store.repeated(new.submission) == new


async def test_jobs_are_found_newest_first_page_by_page(store: SqlJobStore) -> None:
    jobs = [await store.add(record(f"picture {number}", user="ab"[number % 2])) for number in range(6)]
    newest_first = sorted((job.id for job in jobs), reverse=True)
    page = [job.id for job in await store.find(JobQuery(limit=2))]
    rest = [job.id for job in await store.find(JobQuery(before=page[-1]))]
    assert page + rest == newest_first
    mine = await store.find(JobQuery(user="a"))
    assert {job.id for job in mine} == {job.id for job in jobs[::2]}


async def test_jobs_are_found_by_status(store: SqlJobStore) -> None:
    waiting, done = await store.add(record()), await store.add(record())
    await store.save(succeeded(done))
    (found,) = await store.find(JobQuery(statuses=frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED})))
    assert found.id == done.id
    (found,) = await store.find(JobQuery(statuses=frozenset({JobStatus.QUEUED})))
    assert found == waiting


@pytest.mark.parametrize(("text", "hits"), [("FÜCHSE", 1), ("100%", 1), ("0_", 0), ("", 2), ("\\", 0), ("\0fox", 1)])
async def test_prompts_are_searched_as_text_without_case(store: SqlJobStore, text: str, hits: int) -> None:
    await store.add(record("Zwei füchse im Schnee"))
    await store.add(record("a FOX, 100% red"))
    assert len(await store.find(JobQuery(text=text))) == hits


async def test_deleted_and_old_jobs_are_forgotten_and_unfinished_ones_are_not(store: SqlJobStore) -> None:
    deleted, old, recent, waiting = [await store.add(record(age_s=100)) for _ in range(4)]
    await store.save(succeeded(old, at=time.time() - 50))
    await store.save(succeeded(recent))
    await store.delete(deleted.id)
    await store.delete(deleted.id)
    await store.prune(time.time() - 20)
    assert {job.id for job in await store.find(JobQuery())} == {recent.id, waiting.id}


async def test_of_two_writers_the_older_writes_nothing_more(store: SqlJobStore, settings: Settings) -> None:
    job = await store.add(record())
    newer = store_of(settings)
    await newer.open()
    late = record()
    for write in (store.save(succeeded(job)), store.add(late), store.delete(job.id), store.prune(time.time())):
        with pytest.raises(StaleWriter):
            await write
    with pytest.raises(StaleWriter):
        await store.check()
    await newer.check()
    assert await newer.get(job.id) == job
    assert await newer.get(late.id) is None
    await newer.close()


async def test_writers_that_take_over_from_each_other_lose_nothing_acknowledged(settings: Settings) -> None:
    acknowledged: list[str] = []

    async def write(store: SqlJobStore) -> None:
        while True:
            try:
                acknowledged.append((await store.add(record())).id)
            except StaleWriter:
                return

    stores = [store_of(settings) for _ in range(3)]
    writing: list[asyncio.Task[None]] = []
    for store in stores:
        await store.open()
        writing += [asyncio.create_task(write(store)) for _ in range(4)]
        await asyncio.sleep(0.1)
    await asyncio.gather(*writing[:8])
    assert [job.done() for job in writing[8:]] == [False] * 4
    last = store_of(settings)
    await last.open()
    await asyncio.gather(*writing)
    assert {job.id for job in await last.unfinished()} == set(acknowledged)
    for store in (*stores, last):
        await store.close()


async def test_migrations_make_the_tables_that_the_code_uses(store: SqlJobStore, settings: Settings) -> None:
    engine = create_engine(settings.database or f"sqlite:///{settings.data}/jobs.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_sqlite_survives_a_power_cut_and_is_its_owners(tmp_path) -> None:
    store = store_of(Settings(data=tmp_path))
    await store.open()
    async with store._engine.connect() as connection:
        pragmas = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")
        ]
    assert pragmas == ["wal", 2]
    assert (tmp_path / "jobs.db").stat().st_mode & 0o077 == 0
    await store.close()


async def test_what_the_service_remembers_outlives_it(store: SqlJobStore, settings: Settings) -> None:
    assert await store.recall() == {}
    await asyncio.gather(store.remember("paused", "yes"), store.remember("other", "☃"))
    await store.remember("paused", "no")
    again = await reopened(store, settings)
    assert await again.recall() == {"paused": "no", "other": "☃"}
    await again.close()


async def test_a_stale_writer_changes_nothing_that_the_service_remembers(
    store: SqlJobStore, settings: Settings
) -> None:
    newer = store_of(settings)
    await newer.open()
    with pytest.raises(StaleWriter):
        await store.remember("paused", "yes")
    assert await newer.recall() == {}
    await newer.close()
