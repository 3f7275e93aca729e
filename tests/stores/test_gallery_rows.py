"""The rows of pictures, over both databases: they come with their job's success and go before the files do."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from serve.errors import InvalidRequest, StaleWriter
from serve.jobs import gallery
from serve.jobs.record import JobRecord, first_row
from serve.jobs.store import SqlJobStore, store_of
from serve.jobs.tables import MIGRATIONS, asset_removals
from serve.messages import AssetQuery, Deletion, JobStatus, StoredImage
from serve.settings import Settings
from tests.stores.test_job_store import record


def drawn(job: JobRecord, n: int = 2, at: float | None = None, size: int = 10) -> JobRecord:
    request = replace(job.submission.request, n=n)
    images = tuple(
        StoredImage(asset_id=f"{job.id}-{image}", seed=image, width=64, height=96, format="png", bytes=size)
        for image in range(n)
    )
    return replace(
        job,
        submission=replace(job.submission, request=request),
        status=JobStatus.SUCCEEDED,
        started_at=1.0,
        completed_at=at or time.time(),
        images=images,
    )


def ids(job: JobRecord) -> list[str]:
    return [image.asset_id for image in job.images]


async def shown(store: SqlJobStore, **query: object) -> list[str]:
    views = await store.look(partial(gallery.find, query=AssetQuery(**query)))  # type: ignore[arg-type]
    return [view.image.asset_id for view in views]


async def to_go(store: SqlJobStore) -> set[str]:
    return set(await store.look(_all_removals))


async def _all_removals(connection):
    return (await connection.execute(sa.select(asset_removals.c.id))).scalars()


async def saved(store: SqlJobStore, prompt: str = "a cat", **how: object) -> JobRecord:
    job = drawn(record(prompt, user=how.pop("user", "u")), **how)  # type: ignore[arg-type]
    await store.add(replace(job, status=JobStatus.QUEUED, completed_at=None, images=()))
    await store.save(job)
    return job


async def test_rows_come_with_the_success_of_a_job_saved_or_added(store: SqlJobStore) -> None:
    waiting = await store.add(record())
    assert await shown(store) == []
    await store.save(drawn(waiting))
    added = await store.add(drawn(record()))
    assert await shown(store) == [*ids(added), *ids(drawn(waiting))]
    await store.save(drawn(waiting))
    await store.add(added)
    assert len(await shown(store)) == 4


async def test_an_older_writer_adds_no_rows(store: SqlJobStore, settings: Settings) -> None:
    job = await store.add(record())
    newer = store_of(settings)
    await newer.open()
    with pytest.raises(StaleWriter):
        await store.save(drawn(job))
    with pytest.raises(StaleWriter):
        await store.change(partial(gallery.delete_some, ids=["x"], user=None))
    assert await shown(newer) == []
    await newer.close()


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED])
async def test_a_job_that_began_and_did_not_succeed_leaves_nothing(store: SqlJobStore, status: JobStatus) -> None:
    begun, never = [await store.add(drawn_later()) for _ in range(2)]
    await store.save(replace(begun, status=status, started_at=5.0, completed_at=6.0))
    await store.save(replace(never, status=status, completed_at=6.0))
    assert await to_go(store) == {f"{begun.id}-0", f"{begun.id}-1"}
    assert await store.look(partial(gallery.due, limit=9)) == []  # its replica may still be writing


def drawn_later() -> JobRecord:
    job = record()
    return replace(job, submission=replace(job.submission, request=replace(job.submission.request, n=2)))


async def test_pages_are_newest_first_of_one_user_and_searched(store: SqlJobStore) -> None:
    mine = [await saved(store, f"Fox {n}", user="u") for n in range(2)]
    other = await saved(store, "fox", user="v")
    everything = sorted((id for job in (*mine, other) for id in ids(job)), key=lambda id: (id[:26], -int(id[27:])))
    assert await shown(store) == everything[::-1]
    first = await shown(store, user="u", limit=3)
    assert first + await shown(store, user="u", after=first[-1]) == [*ids(mine[1]), *ids(mine[0])]
    assert await shown(store, user="u", text="FOX 0") == ids(mine[0])
    assert await shown(store, user="v", ids=frozenset([*ids(mine[0]), *ids(other)])) == ids(other)


async def test_deleting_moves_rows_into_the_removals_and_marks_the_job(store: SqlJobStore) -> None:
    job, other = await saved(store), await saved(store, user="v")
    wish = [*ids(job)[:1], *ids(other), "unknown"]
    deletion = await store.change(partial(gallery.delete_some, ids=wish, user="u"))
    assert deletion == Deletion(deleted=tuple(ids(job)[:1]), unknown=(*ids(other), "unknown"))
    assert await to_go(store) == set(ids(job)[:1])
    found = await store.get(job.id)
    assert found is not None
    assert [image.deleted for image in found.images] == [True, False]
    await store.change(partial(gallery.removed, ids=ids(job)))
    assert await to_go(store) == set()


@pytest.mark.parametrize("wrong", [None, 0, 3, 5])
async def test_all_go_only_if_their_number_is_known(store: SqlJobStore, wrong: int | None) -> None:
    for _ in range(2):
        await saved(store)
    await saved(store, user="v")
    answer = await store.change(partial(gallery.delete_all, user="u", confirm=wrong))
    assert isinstance(answer, InvalidRequest)
    assert "confirm=4" in str(answer.hint)
    assert len(await shown(store)) == 6
    answer = await store.change(partial(gallery.delete_all, user="u", confirm=4))
    assert isinstance(answer, Deletion)
    assert (len(answer.deleted), len(await shown(store)), len(await to_go(store))) == (4, 2, 4)


async def test_jobs_that_are_deleted_or_forgotten_take_their_pictures(store: SqlJobStore) -> None:
    deleted, old, kept = await saved(store), await saved(store, at=50.0), await saved(store)
    await store.delete(deleted.id)
    await store.prune(60.0)
    assert await shown(store) == ids(kept)
    assert await to_go(store) == {*ids(deleted), *ids(old)}


async def test_retention_names_the_oldest(store: SqlJobStore) -> None:
    jobs = [await saved(store, n=1, at=100.0 + n, size=10) for n in range(4)]
    assert await store.look(partial(gallery.too_old, before=102.0, limit=9)) == [*ids(jobs[0]), *ids(jobs[1])]
    assert await store.look(partial(gallery.too_old, before=102.0, limit=1)) == ids(jobs[0])
    for budget, count in ((40, 0), (39, 1), (30, 1), (29, 2), (1, 4)):
        oldest = await store.look(partial(gallery.over_budget, max_bytes=budget, limit=9))
        assert oldest == [id for job in jobs[:count] for id in ids(job)]


async def test_a_change_that_is_refused_harms_no_other_in_its_commit(store: SqlJobStore) -> None:
    job = record()
    refused, added = store.change(partial(gallery.delete_all, user="u", confirm=7)), store.add(job)
    assert await added == job
    assert isinstance(await refused, InvalidRequest)


async def test_pictures_of_the_first_version_come_into_the_gallery(settings: Settings) -> None:
    job = drawn(record())
    engine = create_engine(settings.database or f"sqlite:///{settings.data}/jobs.db")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "1")
        first = sa.Table("jobs", sa.MetaData(), autoload_with=connection)
        failed = replace(record(), status=JobStatus.FAILED, completed_at=1.0)
        for old in (job, failed):
            row = {name: value for name, value in first_row(old).items() if name in first.columns}
            connection.execute(sa.insert(first), row)
    engine.dispose()
    store = store_of(settings)
    await store.open()
    assert await shown(store, user="anonymous") == ids(job)
    await store.close()


async def test_a_job_sent_again_after_its_deletion_has_its_pictures(store: SqlJobStore) -> None:
    job = await saved(store)
    await store.delete(job.id)
    await store.add(job)
    assert await shown(store) == ids(job)
    assert await to_go(store) == set()
