"""Which results may answer later requests, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from serve.errors import IdempotencyKeyReused, Unavailable
from serve.jobs.cache import ENTRY_BYTES, CacheIndex, Entry, cache_key, key_of
from serve.jobs.dispatcher import Dispatcher
from serve.messages import JobQuery, StoredImage, Succeeded
from serve.settings import CacheSettings
from tests.unit.replicas import Drawing, beat, dispatcher_over, last, order, submitted


@pytest.fixture
def replicas(tmp_path: Path) -> Drawing:
    return Drawing(tmp_path)


@pytest.fixture
async def jobs(replicas: Drawing, tmp_path: Path) -> AsyncIterator[Dispatcher]:
    async for dispatcher in opened(replicas, tmp_path):
        yield dispatcher


async def opened(replicas: Drawing, data: Path, engine: str = "e1", **changes: object) -> AsyncIterator[Dispatcher]:
    dispatcher = dispatcher_over(replicas, data, **changes)
    await dispatcher.open()
    beat(dispatcher, engine=engine)
    yield dispatcher
    await dispatcher.close()


async def drawn(jobs: Dispatcher, replicas: Drawing, **how: object) -> Succeeded:
    """Submitted, drawn if it must be, and ended."""
    job_id = await submitted(jobs, **{"seeded": True} | how)  # type: ignore[arg-type]
    while held := await replicas.settled():
        await replicas.finish(held[0])
    end = await last(jobs, job_id)
    assert isinstance(end, Succeeded), end
    return end


def picture(size: int) -> StoredImage:
    return StoredImage(asset_id="a-0", seed=1, width=1, height=1, format="png", bytes=size)


def entry(size: int = 100, at: float = 0.0) -> Entry:
    return Entry(images=(picture(size),), at=at)


# --- keys and the index


def test_a_key_is_that_of_the_whole_request_and_of_what_draws_it() -> None:
    request = order().request
    changes = {"prompt": "b", "width": 64, "steps": 9, "seed": 6, "n": 2, "output_format": "webp", "guidance": 1.0}
    keys = {key_of(replace(request, **{name: value}), "e") for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(keys | {key_of(request, "e"), key_of(request, "f")}) == len(changes) + 2
    assert key_of(order().request, "e") == key_of(order(user="v", priority="batch", deadline_ms=5).request, "e")


def test_what_is_random_or_unknown_has_no_key() -> None:
    on, off = CacheSettings(), CacheSettings(enabled=False)
    assert cache_key(order(seeded=True), "e", on)
    assert not any([cache_key(order(), "e", on), cache_key(order(seeded=True), "", on)])
    assert cache_key(order(seeded=True), "e", off) is None


def test_entries_go_when_their_time_has_come() -> None:
    now = 0.0
    index = CacheIndex(CacheSettings(ttl_s=10), clock=lambda: now)
    key = index.key("u", "k")
    index.put(key, entry(at=0.0))
    now = 9.0
    assert index.get(key) is not None
    now = 10.5
    assert index.get(key) is None
    assert len(index) == 0
    index.put(key, entry(at=0.0))
    assert index.get(key) is None


def test_the_least_recently_used_go_when_the_bytes_are_full() -> None:
    index = CacheIndex(CacheSettings(max_bytes=2 * (100 + ENTRY_BYTES)), clock=lambda: 0.0)
    keys = [index.key("u", name) for name in "abc"]
    index.put(keys[0], entry())
    index.put(keys[1], entry())
    index.get(keys[0])
    index.put(keys[2], entry())
    assert [index.get(key) is not None for key in keys] == [True, False, True]
    index.put(keys[0], entry(size=1 << 20))
    assert index.get(keys[0]) is None


def test_a_users_entries_are_his_own_unless_they_are_shared() -> None:
    own, shared = CacheIndex(CacheSettings()), CacheIndex(CacheSettings(shared=True))
    assert own.key("u", "k") != own.key("v", "k")
    assert shared.key("u", "k") == shared.key("v", "k")


def test_only_the_entry_that_was_found_missing_is_dropped() -> None:
    index = CacheIndex(CacheSettings(), clock=lambda: 0.0)
    key, old, new = index.key("u", "k"), entry(), entry()
    index.put(key, new)
    index.drop(key, Entry(images=(picture(1),), at=1.0))
    assert index.get(key) is new
    index.drop(key, new)
    assert index.get(key) is None
    assert old == new


# --- hits


async def test_a_hit_touches_no_replica_and_is_the_users_own(jobs: Dispatcher, replicas: Drawing) -> None:
    first, second = await drawn(jobs, replicas), await drawn(jobs, replicas)
    assert (first.cache, second.cache) == ("miss", "hit")
    assert second.images[0].asset_id == f"{second.job_id}-0"
    assert await replicas.bytes_of(first) == await replicas.bytes_of(second)
    assert (len(replicas.tasks), replicas.encoded) == (1, 1)
    metadata = (await replicas.assets.stat(second.images[0].asset_id)).metadata
    assert (metadata["job_id"], metadata["prompt"], metadata["request"]["seed"]) == (second.job_id, "a cat", 5)
    assert [view.cache for view in await jobs.find(JobQuery())] == ["hit", "miss"]


@pytest.mark.parametrize("other", [{"user": "v"}, {"seed": 6}, {"cache": "skip"}, {"seeded": False}, {"n": 2}])
async def test_no_hit_for_what_is_not_the_same(jobs: Dispatcher, replicas: Drawing, other: dict[str, object]) -> None:
    await drawn(jobs, replicas)
    assert (await drawn(jobs, replicas, **other)).cache == "miss"


async def test_a_random_seed_is_not_kept(jobs: Dispatcher, replicas: Drawing) -> None:
    await drawn(jobs, replicas, seeded=False)
    assert (await drawn(jobs, replicas)).cache == "miss"


async def test_what_was_skipped_is_kept(jobs: Dispatcher, replicas: Drawing) -> None:
    await drawn(jobs, replicas, cache="skip")
    assert (await drawn(jobs, replicas)).cache == "hit"


async def test_another_engine_does_not_answer(jobs: Dispatcher, replicas: Drawing) -> None:
    await drawn(jobs, replicas)
    beat(jobs, engine="e2")
    assert [(await drawn(jobs, replicas)).cache for _ in range(2)] == ["miss", "hit"]


async def test_what_an_unexpected_engine_has_drawn_is_not_kept(jobs: Dispatcher, replicas: Drawing) -> None:
    job_id = await submitted(jobs, seeded=True)
    (task_id,) = await replicas.settled()
    beat(jobs, engine="e2")
    await replicas.finish(task_id)
    await last(jobs, job_id)
    beat(jobs, engine="e1")
    assert (await drawn(jobs, replicas)).cache == "miss"


async def test_what_is_not_whole_is_not_kept(jobs: Dispatcher, replicas: Drawing) -> None:
    job_id = await submitted(jobs, seeded=True, n=2)
    first, second = await replicas.settled()
    await replicas.fail(first, Unavailable("not now"))
    await replicas.finish(second)
    assert await last(jobs, job_id)
    assert (await drawn(jobs, replicas, n=2)).cache == "miss"


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
async def test_a_result_whose_picture_is_gone_is_drawn_again(
    jobs: Dispatcher, replicas: Drawing, tmp_path: Path, damage: str
) -> None:
    first = await drawn(jobs, replicas)
    if damage == "deleted":
        await replicas.assets.delete(first.images[0].asset_id)
    else:
        next((tmp_path / "assets").rglob("*.png")).write_bytes(b"x")
    assert [(await drawn(jobs, replicas)).cache for _ in range(2)] == ["miss", "hit"]


async def test_the_copies_of_a_job_that_is_gone_can_still_be_read(jobs: Dispatcher, replicas: Drawing) -> None:
    first, second = await drawn(jobs, replicas), await drawn(jobs, replicas)
    await replicas.assets.delete(first.images[0].asset_id)
    assert await replicas.bytes_of(second)


async def test_a_hit_is_answered_when_the_queue_is_full(replicas: Drawing, tmp_path: Path) -> None:
    async for jobs in opened(replicas, tmp_path, queue={"max_depth": 1}):
        await drawn(jobs, replicas)
        await submitted(jobs, seed=9)
        assert isinstance(await last(jobs, await submitted(jobs, seeded=True)), Succeeded)


async def test_a_key_that_was_used_for_another_body_is_refused_on_a_hit_too(
    jobs: Dispatcher, replicas: Drawing
) -> None:
    first = await drawn(jobs, replicas, key="k")
    assert await jobs.submit(order(seeded=True, key="k")) == first.job_id
    with pytest.raises(IdempotencyKeyReused):
        await jobs.submit(order(seeded=True, key="k", body="other"))


async def test_two_hits_of_one_key_at_once_are_one_job(jobs: Dispatcher, replicas: Drawing, tmp_path: Path) -> None:
    await drawn(jobs, replicas)
    ids = await asyncio.gather(*(jobs.submit(order(seeded=True, key="k")) for _ in range(3)))
    assert len(set(ids)) == 1
    assert len(list((tmp_path / "assets").rglob("*.png"))) == 2


async def test_results_outlive_the_dispatcher_with_their_time_and_owner(replicas: Drawing, tmp_path: Path) -> None:
    async for jobs in opened(replicas, tmp_path):
        await drawn(jobs, replicas)
        await drawn(jobs, replicas, cache="skip", seed=7)
    async for jobs in opened(replicas, tmp_path):
        assert [(await drawn(jobs, replicas, seed=seed)).cache for seed in (5, 7, 8)] == ["hit", "hit", "miss"]
        assert (await drawn(jobs, replicas, user="v")).cache == "miss"
    await asyncio.sleep(1.1)
    async for jobs in opened(replicas, tmp_path, cache={"ttl_s": 1}):
        assert (await drawn(jobs, replicas)).cache == "miss"
    async for jobs in opened(replicas, tmp_path, cache={"enabled": False}):
        assert [(await drawn(jobs, replicas)).cache for _ in range(2)] == ["miss", "miss"]


# --- placed while it is stored


async def test_a_job_is_placed_before_it_is_stored_and_acknowledged_after(jobs: Dispatcher, replicas: Drawing) -> None:
    submitting = asyncio.create_task(jobs.submit(order()))
    (task_id,) = await replicas.settled()
    assert not submitting.done()
    await replicas.finish(task_id)
    assert isinstance(await last(jobs, await submitting), Succeeded)


async def test_nobody_hears_of_a_job_that_is_not_stored_yet(jobs: Dispatcher, replicas: Drawing) -> None:
    submission = order()
    submitting = asyncio.create_task(jobs.submit(submission))
    await replicas.settled()
    asking = asyncio.create_task(jobs.get(submission.job_id))
    again = asyncio.create_task(jobs.submit(submission))
    await replicas.settled()
    assert [task.done() for task in (submitting, asking, again)] == [False] * 3
    assert {await submitting, await again, (await asking).id} == {submission.job_id}
    assert len(replicas.tasks) == 1


async def test_two_submissions_of_one_key_at_once_are_one_job_and_one_generation(
    jobs: Dispatcher, replicas: Drawing, tmp_path: Path
) -> None:
    ids = await asyncio.gather(*(jobs.submit(order(key="k")) for _ in range(3)))
    assert len(set(ids)) == 1
    (task_id,) = await replicas.settled()
    assert task_id.startswith(ids[0])
    assert (await jobs.status()).queued == 1
    await replicas.finish(task_id)
    await last(jobs, ids[0])
    assert len(list((tmp_path / "assets").rglob("*.png"))) == 1


async def test_the_pictures_of_a_repetition_that_was_drawn_meanwhile_are_gone(
    jobs: Dispatcher, replicas: Drawing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_commit, writes = asyncio.Event(), jobs._store._writes  # type: ignore[attr-defined]
    commit = writes._commit

    async def slow(batch: object) -> object:
        await may_commit.wait()
        return await commit(batch)

    monkeypatch.setattr(writes, "_commit", slow)
    submitting = [asyncio.create_task(jobs.submit(order(key="k"))) for _ in range(2)]
    for task_id in await replicas.held_when(2):
        await replicas.finish(task_id)
    may_commit.set()
    ids = {await task for task in submitting}
    assert len(ids) == 1
    assert isinstance(await last(jobs, ids.pop()), Succeeded)
    assert len(list((tmp_path / "assets").rglob("*.png"))) == 1


async def test_a_job_that_cannot_be_stored_is_refused_and_its_work_is_withdrawn(
    jobs: Dispatcher, replicas: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(batch: object) -> None:
        raise OperationalError("INSERT", {}, Exception("the disk is gone"))

    monkeypatch.setattr(jobs._store._writes, "_commit", down)  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="not answering"):
        await jobs.submit(order())
    assert await replicas.settled() == []
    assert (await jobs.status()).queued == 0
    assert len(replicas.tasks) == 1


async def test_who_joined_a_job_that_was_refused_has_its_work(
    jobs: Dispatcher, replicas: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submitted(jobs, key="k", seed=4)
    stored, add = [], jobs._store.add

    async def refuse_the_first(record: object) -> object:
        stored.append(record)
        if len(stored) == 1:
            await asyncio.sleep(0.02)
            raise Unavailable("not now")
        return await add(record)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs._store, "add", refuse_the_first)
    first = asyncio.create_task(jobs.submit(order(seeded=True)))
    await replicas.settled()
    follower = await jobs.submit(order(seeded=True))
    with pytest.raises(Unavailable):
        await first
    for task_id in await replicas.settled():
        await replicas.finish(task_id)
    end = await last(jobs, follower)
    assert isinstance(end, Succeeded)
    assert (end.cache, end.images[0].asset_id, len(replicas.tasks)) == ("miss", f"{follower}-0", 2)


async def test_a_job_id_that_had_ended_in_another_life_is_not_drawn_again(replicas: Drawing, tmp_path: Path) -> None:
    async for jobs in opened(replicas, tmp_path):
        end = await drawn(jobs, replicas, seeded=False)
    async for jobs in opened(replicas, tmp_path):
        assert await jobs.submit(replace(order(), job_id=end.job_id)) == end.job_id
        assert await replicas.settled() == []
        assert await last(jobs, end.job_id) == end
        assert await replicas.bytes_of(end)
