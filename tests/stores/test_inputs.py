"""Input pictures in every asset store, and who needs them in both databases."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial

import pytest

from serve.assets.store import AssetStore
from serve.errors import NotFound
from serve.jobs import gallery, inputs
from serve.jobs.record import JobRecord
from serve.jobs.store import SqlJobStore
from serve.messages import JobQuery
from serve.settings import Settings
from tests.stores.test_asset_store import assets, credentials, s3  # noqa: F401  # fixtures
from tests.stores.test_gallery_rows import drawn
from tests.stores.test_job_store import record, reopened

FOX, CAT, MASK = ("f" * 64, "c" * 64, "a" * 64)


async def test_an_input_is_kept_until_it_is_deleted(assets: AssetStore) -> None:  # noqa: F811
    assert await assets.read_input(FOX) is None
    began = time.time()
    for name in (FOX, FOX, CAT):
        await assets.write_input(name, name.encode())
    assert await assets.read_input(FOX) == FOX.encode()
    found = {name: at async for page in assets.inputs() for name, at in page.items()}
    assert found.keys() == {FOX, CAT}
    assert all(began - 2 <= at <= time.time() + 2 for at in found.values())
    await assets.delete_inputs(FOX, MASK)
    assert [await assets.read_input(name) for name in (FOX, CAT)] == [None, CAT.encode()]


async def test_an_input_that_is_written_again_is_new(assets: AssetStore) -> None:  # noqa: F811
    await assets.write_input(FOX, b"1")
    first = [at async for page in assets.inputs() for at in page.values()]
    await asyncio.sleep(1.1)  # S3 counts in seconds
    await assets.write_input(FOX, b"1")
    assert [at async for page in assets.inputs() for at in page.values()] > first


@pytest.mark.parametrize("name", ["../secret", "", "F" * 64, "a" * 63])
async def test_no_other_file_can_be_named(assets: AssetStore, name: str) -> None:  # noqa: F811
    for doing in (assets.read_input(name), assets.write_input(name, b""), assets.delete_inputs(name)):
        with pytest.raises(NotFound):
            await doing


def beginning_with(*names: str, user: str = "u") -> JobRecord:
    plain = record(user=user)
    image, mask = (*names, None)[:2]
    request = replace(plain.submission.request, image=image, mask=mask, strength=0.5)
    return replace(plain, submission=replace(plain.submission, request=request))


async def needed(store: SqlJobStore) -> set[str]:
    names = [FOX, CAT, MASK]
    return set(names) - set(await store.look(partial(inputs.unneeded, names=names)))


async def ended(store: SqlJobStore, job: JobRecord) -> JobRecord:
    job = drawn(job)
    await store.save(job)
    return job


async def test_inputs_are_needed_from_the_submission_on_also_after_a_restart(
    store: SqlJobStore, settings: Settings
) -> None:
    await store.add(beginning_with(FOX, MASK))
    store = await reopened(store, settings)
    assert await needed(store) == {FOX, MASK}
    (waiting,) = await store.unfinished()
    assert waiting.submission.request.inputs == (FOX, MASK)
    await store.close()


async def test_a_job_that_is_forgotten_needs_nothing_and_others_still_do(store: SqlJobStore) -> None:
    one, other = beginning_with(FOX, MASK), beginning_with(FOX)
    for job in (one, other):
        await store.add(job)
    await store.delete(one.id)
    assert await needed(store) == {FOX}
    await ended(store, other)
    await store.prune(time.time() + 1)
    assert await needed(store) == set()


async def test_inputs_go_with_the_last_picture_of_their_job(store: SqlJobStore) -> None:
    job = beginning_with(FOX)
    await store.add(job)
    pictures = [image.asset_id for image in (await ended(store, job)).images]
    await store.change(partial(gallery.delete_some, ids=pictures[:1], user="u"))
    assert await needed(store) == {FOX}
    await store.change(partial(gallery.delete_some, ids=pictures[1:], user="u"))
    assert await needed(store) == set()


async def test_deleting_all_pictures_leaves_what_running_jobs_and_others_need(store: SqlJobStore) -> None:
    mine, running, theirs = beginning_with(FOX), beginning_with(CAT), beginning_with(MASK, user="v")
    for job in (mine, running, theirs):
        await store.add(job)
    for job in (mine, theirs):
        await ended(store, job)
    await store.change(partial(gallery.delete_all, user="u", confirm=2))
    assert await needed(store) == {CAT, MASK}


async def test_a_job_is_found_by_what_it_begins_with(store: SqlJobStore) -> None:
    job = beginning_with(FOX, MASK)
    await store.add(job)
    for name, user, hits in ((FOX, "u", 1), (MASK, None, 1), (CAT, "u", 0), (FOX, "v", 0)):
        assert len(await store.find(JobQuery(user=user, input=name))) == hits


async def test_an_id_that_was_deleted_and_comes_again_needs_what_it_needs_then(store: SqlJobStore) -> None:
    job = beginning_with(FOX)
    await store.add(job)
    await store.delete(job.id)
    await store.add(job)
    assert await needed(store) == {FOX}
