import asyncio
import hashlib
import multiprocessing
import os
import stat

import pytest

from serve.assets.links import Links, open_links
from serve.assets.local import LocalAssets
from serve.errors import ConfigError, LinkRefused, NotFound, StoreFull
from serve.settings import Settings

JOB = "01K8Z3V7Q4M5N6P7R8S9T0VWXY"
ASSET = f"{JOB}-0"


@pytest.fixture
def assets(tmp_path) -> LocalAssets:
    return LocalAssets(tmp_path)


async def test_a_picture_comes_back_with_its_metadata(assets):
    await assets.write(ASSET, b"pixels", "webp", {"prompt": "狐狸", "seed": 7})
    asset = await assets.read(ASSET)
    assert asset.data == b"pixels"
    assert asset.media_type == "image/webp"
    assert asset.metadata == {"prompt": "狐狸", "seed": 7}


async def test_stat_knows_size_and_hash(assets):
    await assets.write(ASSET, b"pixels", "png", {})
    info = await assets.stat(ASSET)
    assert (info.bytes, info.sha256) == (6, hashlib.sha256(b"pixels").hexdigest())


async def test_the_metadata_lies_beside_the_picture(assets, tmp_path):
    await assets.write(ASSET, b"pixels", "png", {"seed": 7})
    [picture] = tmp_path.rglob("*.png")
    assert picture.read_bytes() == b"pixels"
    assert '"seed": 7' in picture.with_suffix(".json").read_text()


async def test_writing_again_replaces_and_leaves_no_drafts(assets, tmp_path):
    for data in (b"one", b"two"):
        await assets.write(ASSET, data, "png", {})
    assert (await assets.read(ASSET)).data == b"two"
    assert len([path for path in (tmp_path / "images").rglob("*") if path.is_file()]) == 2


async def test_readers_never_see_half_a_picture(assets):
    old, new = b"a" * 300_000, b"b" * 300_000
    await assets.write(ASSET, old, "png", {})

    async def rewrite():
        for _ in range(20):
            await assets.write(ASSET, new, "png", {})

    writing = asyncio.create_task(rewrite())
    while not writing.done():
        assert (await assets.read(ASSET)).data in (old, new)
    await writing


async def test_deleted_is_not_found(assets, tmp_path):
    await assets.write(ASSET, b"pixels", "png", {})
    await assets.delete(ASSET)
    await assets.delete(ASSET)
    with pytest.raises(NotFound):
        await assets.stat(ASSET)
    assert not list(tmp_path.rglob(f"*{ASSET}*"))


@pytest.mark.parametrize(
    "name",
    ["", "..", "../../secret", f"{JOB}-0/../../x", f"../{ASSET}", f"{ASSET}\n", f"{JOB}-100", JOB, f"{JOB.lower()}-0"],
)
async def test_no_id_leads_out_of_the_folder(assets, name):
    for call in (assets.read, assets.stat, assets.delete):
        with pytest.raises(NotFound):
            await call(name)
    with pytest.raises(NotFound):
        await assets.write(name, b"x", "png", {})


@pytest.mark.parametrize("key", [f"{JOB}/../x", f"{JOB}/.x", f"{JOB}/a/b", "x/0", f"{JOB}/"])
async def test_no_preview_key_leads_out_of_the_folder(assets, key):
    with pytest.raises(NotFound):
        await assets.write_preview(key, b"x")
    with pytest.raises(NotFound):
        await assets.read_preview(key)


async def test_previews_live_until_their_job_is_done(assets):
    await assets.write_preview(f"{JOB}/0-0", b"rough")
    await assets.write_preview(f"{JOB}/0-1.png", b"finer")
    assert await assets.read_preview(f"{JOB}/0-1.png") == b"finer"
    await assets.delete_previews(JOB)
    await assets.delete_previews(JOB)
    assert await assets.read_preview(f"{JOB}/0-0") is None


async def test_a_full_disk_is_said_before_writing(tmp_path):
    assets = LocalAssets(tmp_path, min_free_bytes=1 << 62)
    for attempt in (assets.check_room(), assets.write(ASSET, b"x", "png", {}), assets.write_preview(f"{JOB}/0", b"x")):
        with pytest.raises(StoreFull, match="MiB free"):
            await attempt
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def query(links: Links, now: float) -> dict[str, str]:
    return dict(pair.split("=") for pair in links.sign(ASSET, now).split("&"))


def test_a_link_is_good_until_it_expires():
    links = Links(b"k" * 32, ttl_s=60)
    signed = query(links, 1000.5)
    links.verify(ASSET, **signed, now=1059.9)
    with pytest.raises(LinkRefused, match="expired 1 s ago"):
        links.verify(ASSET, **signed, now=1061)


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "9999"},
        {"expires": None},
        {"expires": "１０６０"},
        {"expires": "-1"},
        {"signature": None},
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "ü"},
    ],
)
def test_a_changed_link_is_refused(change):
    links = Links(b"k" * 32, ttl_s=60)
    with pytest.raises(LinkRefused):
        links.verify(ASSET, **{**query(links, 1000), **change}, now=1001)


def test_a_link_opens_one_picture_with_one_key():
    signed = query(Links(b"k" * 32, 60), 1000)
    with pytest.raises(LinkRefused):
        Links(b"k" * 32, 60).verify(f"{JOB}-1", **signed, now=1001)
    with pytest.raises(LinkRefused):
        Links(b"x" * 32, 60).verify(ASSET, **signed, now=1001)


def test_the_secret_is_made_once_and_private(tmp_path):
    settings = Settings(data=tmp_path / "data")
    links = open_links(settings)
    secret = tmp_path / "data" / "secret"
    assert links.key == open_links(settings).key == secret.read_bytes()
    assert len(links.key) == 32
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_configured_secret_makes_no_file(tmp_path):
    links = open_links(Settings(data=tmp_path, secret_key="s" * 32))
    assert links.key == b"s" * 32
    assert not list(tmp_path.iterdir())


def test_a_short_secret_stops_the_start(tmp_path):
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        open_links(Settings(data=tmp_path))


def _key(data) -> bytes:
    return open_links(Settings(data=data)).key


def test_processes_that_start_together_share_one_secret(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        keys = pool.map(_key, [tmp_path] * 16, chunksize=1)
    assert len(set(keys)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


async def test_a_sweep_takes_the_previews_of_jobs_that_are_long_quiet(assets, tmp_path):
    quiet, busy = JOB, f"{JOB[:-1]}Z"
    for job_id in (quiet, busy):
        await assets.write_preview(f"{job_id}/0-0", b"blur")
    os.utime(tmp_path / "previews" / quiet, times=(0, 0))
    await assets.sweep_previews(older_than_s=3600)
    assert await assets.read_preview(f"{quiet}/0-0") is None
    assert await assets.read_preview(f"{busy}/0-0") == b"blur"
