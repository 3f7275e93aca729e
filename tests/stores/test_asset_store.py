"""What every asset store does, whatever is below it: a folder, S3, memory."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore
from ulid import ULID

from serve.assets.local import LocalAssets
from serve.assets.objects import ObjectAssets
from serve.assets.open import check_assets, open_assets
from serve.assets.store import AssetStore
from serve.errors import AssetCorrupted, ConfigError, NotFound, StoreFull, StoreUnavailable
from serve.settings import Settings
from tests.stores.moto import S3Server, s3_server

JOB = "01K8Z3V7Q4M5N6P7R8S9T0VWXY"
ASSET, OTHER = f"{JOB}-0", f"{JOB}-1"


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")


def in_bucket(server: S3Server, bucket: str, data: Path, **how: object) -> Settings:
    s3 = {"bucket": bucket, "endpoint": server.endpoint, **how}
    return Settings.model_validate({"data": data, "assets": {"store": "s3", "s3": s3}})


@pytest.fixture(params=["local", "s3", "memory"])
def assets(request: pytest.FixtureRequest, tmp_path: Path, credentials: None) -> AssetStore:
    if request.param == "local":
        return open_assets(Settings(data=tmp_path))
    if request.param == "memory":
        return ObjectAssets(MemoryStore())
    server: S3Server = request.getfixturevalue("s3")
    return open_assets(in_bucket(server, server.new_bucket(), tmp_path, prefix="some/where"))


async def test_a_picture_comes_back_with_its_metadata(assets: AssetStore) -> None:
    info = await assets.write(ASSET, b"pixels", "webp", {"prompt": "狐狸", "seed": 7})
    asset = await assets.read(ASSET)
    assert (asset.data, asset.media_type, asset.metadata) == (b"pixels", "image/webp", {"prompt": "狐狸", "seed": 7})
    assert asset.info == info == await assets.stat(ASSET)
    assert (info.bytes, info.sha256) == (6, hashlib.sha256(b"pixels").hexdigest())


async def test_writing_again_replaces(assets: AssetStore) -> None:
    for data in (b"one", b"two", b"two"):
        await assets.write(ASSET, data, "png", {})
        assert (await assets.read(ASSET)).data == data


async def test_readers_never_see_half_a_picture(assets: AssetStore) -> None:
    versions = [bytes([number]) * 100_000 for number in range(5)]
    await assets.write(ASSET, versions[0], "png", {})

    async def rewrite() -> None:
        for version in versions[1:]:
            await assets.write(ASSET, version, "png", {})

    writing = asyncio.create_task(rewrite())
    while not writing.done():
        assert (await assets.read(ASSET)).data in versions
    await writing


async def test_a_link_is_the_same_picture_with_its_own_metadata_and_life(assets: AssetStore) -> None:
    source = await assets.write(ASSET, b"pixels", "jpeg", {"user": "a"})
    linked = await assets.link(ASSET, OTHER, {"user": "b"})
    assert (linked.sha256, linked.format, linked.bytes) == (source.sha256, "jpeg", 6)
    assert (await assets.read(OTHER)).metadata == {"user": "b"}
    await assets.delete(ASSET)
    await assets.tidy()
    assert (await assets.read(OTHER)).data == b"pixels"
    await assets.delete(OTHER)
    with pytest.raises(NotFound):
        await assets.read(OTHER)


async def test_nothing_links_to_nothing(assets: AssetStore) -> None:
    with pytest.raises(NotFound, match=ASSET):
        await assets.link(ASSET, OTHER, {})
    with pytest.raises(NotFound):
        await assets.stat(OTHER)


async def test_linking_over_a_picture_and_over_itself_keeps_one(assets: AssetStore) -> None:
    await assets.write(ASSET, b"pixels", "png", {})
    await assets.write(OTHER, b"others", "png", {})
    await assets.link(ASSET, OTHER, {})
    await assets.link(ASSET, ASSET, {"again": True})
    assert (await assets.read(OTHER)).data == (await assets.read(ASSET)).data == b"pixels"
    assert (await assets.stat(ASSET)).metadata == {"again": True}


async def test_deleting_takes_the_thumbnail_and_never_complains(assets: AssetStore) -> None:
    await assets.write(ASSET, b"pixels", "png", {})
    await assets.write_thumbnail(ASSET, b"small")
    assert await assets.read_thumbnail(ASSET) == b"small"
    await assets.delete(ASSET, OTHER)
    await assets.delete(ASSET)
    assert await assets.read_thumbnail(ASSET) is None
    with pytest.raises(NotFound):
        await assets.stat(ASSET)
    assert [page async for page in assets.listing()] == []


async def test_a_listing_has_every_id_in_order_and_splits_no_job(assets: AssetStore) -> None:
    began = time.time() - 2
    jobs = sorted(str(ULID.from_timestamp(1_700_000_000 + 1000 * n)) for n in range(3))
    ids = [f"{job}-{image}" for job in jobs for image in (0, 1, 2, 10)]
    for asset_id in reversed(ids):
        await assets.write(asset_id, b"x", "png", {})
    await assets.write_thumbnail(f"{jobs[1]}-7", b"left over")
    pages = [page async for page in assets.listing()]
    assert sorted(id for page in pages for id in page) == sorted([*ids, f"{jobs[1]}-7"])
    assert all(began < at < time.time() + 2 for page in pages for at in page.values())
    of_jobs = [sorted({id[:26] for id in page}) for page in pages]
    assert [job for page in of_jobs for job in page] == jobs


async def test_previews_live_until_their_job_is_done(assets: AssetStore) -> None:
    await assets.write_preview(f"{JOB}/0-0", b"rough")
    await assets.write_preview(f"{JOB}/0-1.png", b"finer")
    assert await assets.read_preview(f"{JOB}/0-1.png") == b"finer"
    await assets.sweep_previews(older_than_s=3600)
    await assets.delete_previews(JOB)
    await assets.delete_previews(JOB)
    assert await assets.read_preview(f"{JOB}/0-0") is None
    await assets.write_preview(f"{JOB}/0-0", b"rough")
    await assets.sweep_previews(older_than_s=-5)
    assert await assets.read_preview(f"{JOB}/0-0") is None


@pytest.mark.parametrize("name", ["", "../../secret", f"{ASSET}\n", f"{JOB}-100", JOB, f"{JOB.lower()}-0"])
async def test_no_id_leads_elsewhere(assets: AssetStore, name: str) -> None:
    await assets.write(ASSET, b"x", "png", {})
    calls = [assets.read(name), assets.stat(name), assets.delete(name), assets.write(name, b"x", "png", {})]
    for call in (*calls, assets.link(name, ASSET, {}), assets.link(ASSET, name, {}), assets.read_thumbnail(name)):
        with pytest.raises(NotFound):
            await call


IDS = [f"{JOB}-{number}" for number in range(3)]
ACTS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(IDS), st.sampled_from([b"a", b"b"])),
    st.tuples(st.just("link"), st.sampled_from(IDS), st.sampled_from(IDS)),
    st.tuples(st.just("delete"), st.sampled_from(IDS), st.none()),
    st.tuples(st.just("tidy"), st.none(), st.none()),
)


@pytest.mark.parametrize("kind", ["folder", "folder without hard links", "memory"])
@given(acts=st.lists(ACTS, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_done_each_picture_is_what_was_last_put_there(
    kind: str, acts: list[tuple[str, str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("assets")
    store = ObjectAssets(MemoryStore()) if kind == "memory" else LocalAssets(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.assets.local.LONE_S", -1.0)
        if kind == "folder without hard links":
            patch.setattr(os, "link", _no_links)
        asyncio.run(_act_and_compare(store, acts))
    blobs = {file.name for file in (folder / "blobs").rglob("*") if file.is_file()} if kind == "folder" else set()
    left = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder).rglob("*.png")}
    assert blobs <= left


async def _act_and_compare(store: AssetStore, acts: list[tuple[str, str, object]]) -> None:
    model: dict[str, bytes] = {}
    for act, target, argument in acts:
        if act == "write":
            await store.write(target, argument, "png", {})
            model[target] = argument
        elif act == "delete":
            await store.delete(target)
            model.pop(target, None)
        elif act == "tidy":
            await store.tidy()
        elif argument in model:
            await store.link(argument, target, {})
            model[target] = model[argument]
        else:
            with pytest.raises(NotFound):
                await store.link(argument, target, {})
    assert {id for page in [page async for page in store.listing()] for id in page} == set(model)
    assert {id: (await store.read(id)).data for id in model} == model
    await store.tidy()


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


# --- the folder's own


@pytest.fixture
def local(tmp_path: Path) -> LocalAssets:
    return LocalAssets(tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in found(folder, "*"))


def found(folder: Path, pattern: str) -> list[Path]:
    return [file for file in folder.rglob(pattern) if file.is_file()]


async def test_equal_pictures_are_stored_once_and_gone_with_the_last(local: LocalAssets, tmp_path: Path) -> None:
    for asset_id in (ASSET, OTHER):
        await local.write(asset_id, b"pixels", "png", {})
    pictures = found(tmp_path, "*.png")
    assert len({picture.stat().st_ino for picture in pictures}) == 1
    assert len(files(tmp_path / "blobs")) == 1
    await local.delete(ASSET)
    assert len(files(tmp_path / "blobs")) == 1
    await local.delete(OTHER)
    assert files(tmp_path) == []


async def test_a_blob_that_a_sweep_takes_from_under_a_writer_is_written_again(
    local: LocalAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, taken = os.link, []

    def steal(source: Path, target: Path) -> None:
        if not taken:
            taken.append(source)
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(os, "link", steal)
    await local.write(ASSET, b"pixels", "png", {})
    assert len(taken) == 1
    assert (await local.read(ASSET)).data == b"pixels"


async def test_writers_and_sweeps_at_once_lose_nothing(local: LocalAssets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.assets.local.LONE_S", -1.0)
    monkeypatch.setattr("serve.assets.local.DRAFT_S", 5.0)

    async def sweep() -> None:
        while True:
            await local.tidy()

    sweeping = asyncio.create_task(sweep())
    for number in range(60):
        await local.write(f"{JOB}-{number % 10}", b"pixels", "png", {})
        await local.delete(f"{JOB}-{(number + 5) % 10}")
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    for number in range(5, 10):
        assert (await local.read(f"{JOB}-{number}")).data == b"pixels"


async def test_a_damaged_picture_is_never_served_and_the_next_equal_one_is_whole(
    local: LocalAssets, tmp_path: Path
) -> None:
    await local.write(ASSET, b"pixels", "png", {})
    (picture,) = found(tmp_path, "*.png")
    picture.write_bytes(b"pixelz")
    with pytest.raises(AssetCorrupted, match="SHA-256"):
        await local.read(ASSET)
    await local.write(OTHER, b"pixels", "png", {})
    assert (await local.read(OTHER)).data == b"pixels"


async def test_a_picture_without_its_file_or_with_broken_metadata_is_damaged(
    local: LocalAssets, tmp_path: Path
) -> None:
    await local.write(ASSET, b"pixels", "png", {})
    for file in (*found(tmp_path, "*.png"), *found(tmp_path / "blobs", "*/*")):
        file.unlink()
    with pytest.raises(AssetCorrupted, match="missing"):
        await local.read(ASSET)
    found(tmp_path, "*.json")[0].write_bytes(b"{")
    with pytest.raises(AssetCorrupted, match="metadata"):
        await local.read(ASSET)


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EROFS, StoreUnavailable)]
)
@pytest.mark.parametrize("step", ["fsync", "link", "replace", "mkdir"])
async def test_a_disk_that_takes_no_more_is_said_and_leaves_no_drafts(
    local: LocalAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(Path if step == "mkdir" else os, step, fail)
    with pytest.raises(error):
        await local.write(ASSET, b"pixels", "png", {})
    monkeypatch.undo()
    assert not [name for name in files(tmp_path) if name.startswith(".")]
    with pytest.raises(NotFound):
        await local.read(ASSET)


async def test_a_picture_and_its_names_are_synced_before_it_is_acknowledged(
    local: LocalAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves are the files, and the names in folders, that were synced."""
    synced: set[int] = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    await local.write(ASSET, b"pixels", "png", {})
    (picture,) = found(tmp_path, "*.png")
    for path in (picture, picture.with_suffix(".json"), *list(picture.parents)[:3]):
        assert path.stat().st_ino in synced, path


async def test_what_dead_writers_left_is_tidied_and_what_lives_is_not(
    local: LocalAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.write(ASSET, b"pixels", "png", {})
    kept = files(tmp_path)
    lone = tmp_path / "blobs" / "ab" / "abcd"
    lone.parent.mkdir()
    lone.write_bytes(b"lone")
    draft = next((tmp_path / "images").rglob("*.png")).with_name(".draft")
    draft.write_bytes(b"half")
    await local.tidy()
    assert files(tmp_path) == sorted([*kept, "abcd", ".draft"])
    monkeypatch.setattr("serve.assets.local.LONE_S", -1.0)
    os.utime(draft, (0, 0))
    await local.tidy()
    assert files(tmp_path) == kept


async def test_folders_of_the_first_version_are_read_and_linked(local: LocalAssets, tmp_path: Path) -> None:
    """It had no blobs."""
    await local.write(ASSET, b"pixels", "png", {})
    for file in (tmp_path / "blobs").rglob("*/*"):
        file.unlink()
    await local.link(ASSET, OTHER, {})
    assert (await local.read(OTHER)).data == (await local.read(ASSET)).data == b"pixels"


# --- S3's own


async def test_s3_keeps_the_media_type(s3: S3Server, credentials: None, tmp_path: Path) -> None:
    settings = in_bucket(s3, s3.new_bucket(), tmp_path)
    assets = open_assets(settings)
    await assets.write(ASSET, b"pixels", "webp", {})
    await assets.link(ASSET, OTHER, {})
    assert isinstance(assets, ObjectAssets)
    for asset_id in (ASSET, OTHER):
        found = await obstore.get_async(assets._store, f"images/{asset_id}.webp")
        assert found.attributes["Content-Type"] == "image/webp"


async def test_an_s3_that_does_not_answer_is_said_without_its_address(
    s3: S3Server, credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.assets.open.PATIENCE_S", 0.5)
    with s3_server() as mortal:
        assets = open_assets(in_bucket(mortal, mortal.new_bucket(), tmp_path))
        await assets.write(ASSET, b"pixels", "png", {})
    for call in (assets.read(ASSET), assets.write(OTHER, b"x", "png", {}), assets.delete(ASSET)):
        with pytest.raises(StoreUnavailable) as raised:
            await call
        assert "127.0.0.1" not in raised.value.message


def test_a_bucket_that_works_is_left_as_it_was(s3: S3Server, credentials: None, tmp_path: Path) -> None:
    settings = in_bucket(s3, s3.new_bucket(), tmp_path)
    check_assets(settings)
    store = open_assets(settings)
    assert isinstance(store, ObjectAssets)
    assert obstore.list(store._store).collect() == []


@pytest.mark.parametrize(
    ("change", "what"),
    [({"bucket": "no-such-bucket"}, "does not exist"), ({"endpoint": "http://127.0.0.1:9"}, "does not answer")],
)
def test_a_bucket_that_does_not_work_stops_the_start(
    s3: S3Server, credentials: None, tmp_path: Path, change: dict[str, str], what: str
) -> None:
    bucket = s3.new_bucket()
    s3_settings = {"bucket": bucket, "endpoint": s3.endpoint} | change
    settings = Settings.model_validate({"data": tmp_path, "assets": {"store": "s3", "s3": s3_settings}})
    with pytest.raises(ConfigError, match=what) as raised:
        check_assets(settings)
    assert s3_settings["bucket"] in raised.value.message


@pytest.mark.parametrize("wrong", [{"store": "s3"}, {"s3": {"bucket": "x"}}, {"store": "s3", "s3": {"bucket": ""}}])
def test_half_a_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bucket|store: s3"):
        Settings.model_validate({"assets": wrong})
