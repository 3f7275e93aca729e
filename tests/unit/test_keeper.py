"""Pictures and rows stay true to each other, through deletes, retention, failures, and crashes in between."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from ulid import ULID

from serve.assets.local import LocalAssets
from serve.errors import NotFound, StoreUnavailable
from serve.jobs import gallery, keeper
from serve.jobs.fleet import ReplicaGone
from serve.messages import AssetQuery, Canceled, Failed, Succeeded
from tests.unit.replicas import last, order, submitted
from tests.unit.test_restart import Life

PIXELS = b"pixels"
PICTURE_BYTES = len(f"{ULID()}-0.1")  # what the replicas here say of each


class Gallery(Life):
    """A Dispatcher whose replicas store what they draw."""

    def __init__(self, data: Path, **changes: object) -> None:
        super().__init__(data, **changes)
        self.files = LocalAssets(data / "assets")

    async def draw(self, n: int = 1, user: str = "u") -> list[str]:
        job_id = await submitted(self.jobs, n=n, user=user)
        while held := await self.replicas.settled():
            await self.write(next(task.asset_id for task in self.replicas.tasks if task.id == held[0]))
            await self.replicas.finish(held[0])
        assert isinstance(await last(self.jobs, job_id), Succeeded)
        return [f"{job_id}-{image}" for image in range(n)]

    async def write(self, asset_id: str) -> None:
        await self.files.write(asset_id, PIXELS, "png", {})

    async def rows(self) -> list[str]:
        return [view.image.asset_id for view in await self.jobs.find_assets(AssetQuery(limit=1000))]

    async def stored(self) -> list[str]:
        return [asset_id async for page in self.files.listing() for asset_id in page]

    @property
    def keeper(self) -> keeper.Keeper:
        return self.jobs._album.keeper


def aged(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are older than what may belong to a job that is not stored yet."""
    monkeypatch.setattr(keeper, "SAFE_AGE_S", -1.0)


async def test_deleted_pictures_are_gone_when_the_call_returns(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as life:
        first, second = await life.draw(n=2)
        deletion = await life.jobs.delete_assets("u", (first, "unknown"))
        assert (deletion.deleted, deletion.unknown) == ((first,), ("unknown",))
        assert await life.stored() == await life.rows() == [second]
        view = await life.jobs.get(first[:26])
        assert [image.deleted for image in view.images] == [True, False]
        event = await last(life.jobs, first[:26])
        assert isinstance(event, Succeeded)
        assert event.images == view.images


async def test_a_crash_between_rows_and_files_leaves_no_file(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as before:
        ids = await before.draw(n=2)
        await before.jobs._store.change(partial(gallery.delete_some, ids=ids, user="u"))
        assert await before.stored() == ids
    async with Gallery(tmp_path) as after:
        await _until_gone(after)
        assert await after.rows() == []


async def _until_gone(life: Gallery) -> None:
    for _ in range(200):
        if not await life.stored():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await life.stored())


async def test_a_store_that_is_away_keeps_nobody_waiting_for_ever_and_loses_no_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Gallery(tmp_path) as life:
        ids = await life.draw()
        with monkeypatch.context() as patch:
            patch.setattr(LocalAssets, "_delete", _away)
            assert (await life.jobs.delete_assets("u", tuple(ids))).deleted == tuple(ids)
            assert await life.stored() == ids
        await life.keeper.sweep()
        assert await life.stored() == []


def _away(*_: object) -> None:
    raise StoreUnavailable("away")


async def test_pictures_of_a_cancelled_and_of_a_failed_job_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "LATE_WRITES_S", -1.0)
    async with Gallery(tmp_path) as life:
        for end in (Canceled, Failed):
            job_id = await submitted(life.jobs, n=2)
            task_id = await life.runs()
            await life.write(f"{job_id}-0")
            await life.replicas.finish(task_id)
            if end is Canceled:
                await life.jobs.cancel(job_id)
            else:
                for _ in range(3):
                    await life.replicas.fail((await life.replicas.settled())[0], ReplicaGone(None))
            assert isinstance(await last(life.jobs, job_id), end)
            assert await life.stored() == []
            await life.write(f"{job_id}-0")  # by a replica that was told to stop, late
            await life.keeper.sweep()
            assert await life.stored() == []


async def test_deleting_a_job_that_was_cancelled_half_way_leaves_no_picture(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as life:
        job_id = await submitted(life.jobs, n=2)
        task_id = await life.runs()
        await life.write(f"{job_id}-0")
        await life.files.write_preview(f"{job_id}/0-0", b"blur")
        await life.replicas.finish(task_id)
        await life.jobs.delete(job_id)
        assert await life.stored() == []
        assert await life.files.read_preview(f"{job_id}/0-0") is None


async def test_retention_by_age_takes_the_old_and_tells_their_jobs(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as life:
        ids = await life.draw(n=2)
    await asyncio.sleep(1.1)
    async with Gallery(tmp_path, assets={"retention": {"max_age_s": 1}}) as life:
        await _until_gone(life)
        assert [image.deleted for image in (await life.jobs.get(ids[0][:26])).images] == [True, True]
        assert await life.rows() == []


async def test_retention_by_bytes_takes_the_oldest(tmp_path: Path) -> None:
    async with Gallery(tmp_path, assets={"retention": {"max_bytes": 3 * PICTURE_BYTES}}) as life:
        ids = [asset_id for _ in range(5) for asset_id in await life.draw()]
        await life.keeper.sweep()
        assert await life.stored() == sorted(ids[2:])
        assert sorted(await life.rows()) == sorted(ids[2:])


async def test_a_forgotten_job_takes_its_pictures(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as life:
        await life.draw(n=2)
    await asyncio.sleep(1.1)
    async with Gallery(tmp_path, jobs_ttl_s=1) as life:
        async with asyncio.timeout(10):
            while await life.rows():  # until the first prune after the start
                await asyncio.sleep(0.05)
        await life.keeper.sweep()
        assert await life.stored() == []


async def test_files_without_a_row_and_rows_without_a_file_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Gallery(tmp_path) as life:
        kept, lost = await life.draw(), await life.draw(n=2)
        stray = f"{ULID()}-0"
        await life.write(stray)
        await life.files.delete(lost[1])
        await life.keeper.reconcile()
        assert stray in await life.stored()  # it may be on its way to a row
        aged(tmp_path, monkeypatch)
        await life.keeper.reconcile()
        assert sorted(await life.stored()) == sorted(await life.rows()) == sorted([*kept, lost[0]])
        assert [image.deleted for image in (await life.jobs.get(lost[0][:26])).images] == [False, True]


async def test_pictures_of_a_job_that_has_not_ended_are_never_strays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(tmp_path, monkeypatch)
    async with Gallery(tmp_path) as life:
        job_id = await submitted(life.jobs, n=2)
        task_id = await life.runs()
        await life.write(f"{job_id}-0")
        await life.replicas.finish(task_id)
        await life.keeper.reconcile()
        assert await life.stored() == [f"{job_id}-0"]


async def test_a_folder_that_is_not_mounted_and_a_foreign_database_harm_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(tmp_path, monkeypatch)
    monkeypatch.setattr(keeper, "UNLIKELY", 2)
    async with Gallery(tmp_path) as life:
        ids = [asset_id for _ in range(4) for asset_id in await life.draw()]
        os.rename(tmp_path / "assets" / "images", tmp_path / "elsewhere")
        (tmp_path / "assets" / "images").mkdir()
        await life.keeper.reconcile()
        assert len(await life.rows()) == 4
        os.rmdir(tmp_path / "assets" / "images")
        os.rename(tmp_path / "elsewhere", tmp_path / "assets" / "images")
    for name in os.listdir(tmp_path):
        if name.startswith("jobs.db"):
            os.unlink(tmp_path / name)
    async with Gallery(tmp_path) as life:
        await life.keeper.reconcile()
        assert sorted(await life.stored()) == sorted(ids)


async def test_the_keeper_goes_on_when_the_store_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "ROUND_S", 0.02)
    async with Gallery(tmp_path) as life:
        with monkeypatch.context() as patch:
            patch.setattr(LocalAssets, "_delete", _away)
            ids = await life.draw()
            await life.jobs.delete_assets("u", tuple(ids))
            await asyncio.sleep(0.1)
        await _until_gone(life)


async def test_files_that_cannot_be_removed_hold_up_no_others(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as life:
        stuck, other = await life.draw(n=2)
        folder = tmp_path / "assets" / "images" / stuck[:4] / stuck[4:6]
        os.unlink(folder / f"{stuck}.json")
        os.mkdir(folder / f"{stuck}.json")
        deletion = await life.jobs.delete_assets("u", (stuck, other))
        assert deletion.deleted == (stuck, other)
        assert await life.stored() == [stuck]
        os.rmdir(folder / f"{stuck}.json")
        await life.jobs._store.change(partial(gallery.postpone, ids=[stuck], due_at=0.0))
        await life.keeper.sweep()
        assert await life.stored() == []


async def test_a_job_of_another_user_is_unknown(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as life:
        ids = await life.draw(user="a")
        assert (await life.jobs.delete_assets("b", tuple(ids))).unknown == tuple(ids)
        assert (await life.jobs.delete_all_assets("b", 0)).deleted == ()
        assert await life.stored() == ids


async def test_nobody_finds_a_picture_of_a_deleted_job(tmp_path: Path) -> None:
    async with Gallery(tmp_path) as life:
        (asset_id,) = await life.draw()
        await life.jobs.delete(asset_id[:26])
        assert await life.rows() == []
        with pytest.raises(NotFound):
            await life.files.read(asset_id)


async def test_inputs_that_no_job_needs_are_swept_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, refused = "a" * 64, "b" * 64
    async with Gallery(tmp_path) as life:
        for name in (needed, refused):
            await life.files.write_input(name, PIXELS)
        submission = order()
        request = replace(submission.request, image=needed, strength=0.5)
        job_id = await life.jobs.submit(replace(submission, request=request))
        await life.keeper.sweep_inputs()
        assert await life.files.read_input(refused), "its job may be on its way"
        monkeypatch.setattr(keeper, "INPUT_S", -1.0)
        await life.keeper.sweep_inputs()
        assert await life.files.read_input(refused) is None
        assert await life.files.read_input(needed) == PIXELS
        await life.jobs.delete(job_id)
        await life.keeper.sweep_inputs()
        assert await life.files.read_input(needed) is None
