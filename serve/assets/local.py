"""An asset store in a folder, for one machine. Equal pictures are stored once."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serve.assets.store import (
    ASSET_ID,
    JOB_ID,
    LOOK_S,
    LOOKS,
    PREVIEW_KEY,
    SUFFIXES,
    THUMBNAIL,
    Asset,
    AssetInfo,
    checked,
    no_asset,
)
from serve.errors import AssetCorrupted, StoreFull, StoreUnavailable
from serve.inputs import NAME
from serve.messages import ImageFormat, Series

MIN_FREE_BYTES = 64 << 20
DRAFT_S = 3600.0  # no write takes so long: its writer has died
LONE_S = 60.0  # bytes that nobody refers to for so long are nobody's; sooner they may be on their way to a picture
TRIES = 5

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EIO)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


class LocalAssets:
    """An AssetStore. `blobs/ab/SHA256` holds bytes; `images/01M7/ZY/{asset_id}.png` is a hard link to them.

    So the file system counts references: deleting is unlinking, and a blob with one name left is nobody's. A blob
    or a folder that a sweep takes from under a writer makes the writer begin again. Where there are no hard links,
    pictures are files of their own.
    """

    def __init__(self, root: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._images, self._blobs, self._previews = root / "images", root / "blobs", root / "previews"
        self._inputs = root / "inputs"
        self._min_free_bytes = min_free_bytes
        self._hard_links = True
        for folder in (self._images, self._blobs, self._previews, self._inputs):
            folder.mkdir(parents=True, exist_ok=True)

    async def check_room(self) -> None:
        await asyncio.to_thread(self._check_room)

    async def measure(self) -> dict[Series, float]:
        return {("zimage_store_free_bytes", ()): (await asyncio.to_thread(shutil.disk_usage, self._images)).free}

    async def write(self, asset_id: str, data: bytes, format: ImageFormat, metadata: dict[str, Any]) -> AssetInfo:
        return await asyncio.to_thread(self._write, asset_id, data, format, metadata)

    async def link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        return await asyncio.to_thread(self._link, source_id, target_id, metadata)

    async def read(self, asset_id: str) -> Asset:
        return await asyncio.to_thread(self._read, asset_id)

    async def stat(self, asset_id: str) -> AssetInfo:
        return await asyncio.to_thread(self._stat, asset_id)

    async def delete(self, *asset_ids: str) -> None:
        await asyncio.to_thread(self._delete, asset_ids)

    async def write_thumbnail(self, asset_id: str, data: bytes) -> None:
        path = self._base(asset_id).with_suffix(f".{THUMBNAIL}")
        await asyncio.to_thread(self._write_aside, path, data, durable=True)

    async def read_thumbnail(self, asset_id: str) -> bytes | None:
        return await asyncio.to_thread(_read_if_there, self._base(asset_id).with_suffix(f".{THUMBNAIL}"))

    async def listing(self) -> AsyncIterator[dict[str, float]]:
        for folder in await asyncio.to_thread(lambda: sorted(self._images.glob("*/*/"))):
            if page := await asyncio.to_thread(_page, folder):
                yield page

    async def tidy(self) -> None:
        await asyncio.to_thread(self._tidy, time.time())

    async def write_input(self, name: str, data: bytes) -> None:
        path = self._input(name)
        await asyncio.to_thread(self._write_aside, path, data, durable=True)

    async def read_input(self, name: str) -> bytes | None:
        return await asyncio.to_thread(_read_if_there, self._input(name))

    async def inputs(self) -> AsyncIterator[dict[str, float]]:
        for folder in await asyncio.to_thread(lambda: sorted(self._inputs.iterdir())):
            yield await asyncio.to_thread(_input_page, folder)

    async def delete_inputs(self, *names: str) -> None:
        with _told():
            for path in map(self._input, names):
                await asyncio.to_thread(path.unlink, missing_ok=True)

    async def write_preview(self, key: str, data: bytes) -> None:
        path = self._previews / checked(PREVIEW_KEY, key)
        await asyncio.to_thread(self._write_aside, path, data, durable=False)

    async def read_preview(self, key: str) -> bytes | None:
        return await asyncio.to_thread(_read_if_there, self._previews / checked(PREVIEW_KEY, key))

    async def delete_previews(self, job_id: str) -> None:
        folder = self._previews / checked(JOB_ID, job_id)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def sweep_previews(self, older_than_s: float) -> None:
        await asyncio.to_thread(self._sweep_previews, time.time() - older_than_s)

    def _check_room(self) -> None:
        if not os.access(self._images, os.W_OK):
            hint = "the operator must look at the data folder"
            raise StoreUnavailable("the asset store cannot be written", hint=hint, retry_after=60)
        free = shutil.disk_usage(self._images).free
        if free < self._min_free_bytes:
            raise StoreFull(
                f"the asset store has {free >> 20} MiB free, {self._min_free_bytes >> 20} MiB are the least",
                hint="free disk space in the data folder, or delete old pictures",
                retry_after=60,
            )

    def _write(self, asset_id: str, data: bytes, format: ImageFormat, metadata: dict[str, Any]) -> AssetInfo:
        checked(ASSET_ID, asset_id)
        self._check_room()
        info = AssetInfo.of(asset_id, data, format, metadata)
        return self._put(info, lambda path: self._place(data, info.sha256, path))

    def _link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        source = self._stat(source_id)
        checked(ASSET_ID, target_id)
        self._check_room()
        picture = self._picture(source)
        if not source.fits(_read_if_there(picture)):  # gone, or damaged: it is to be drawn again, which repairs it
            raise no_asset(source_id)
        info = AssetInfo(
            asset_id=target_id,
            format=source.format,
            bytes=source.bytes,
            sha256=source.sha256,
            created_at=time.time(),
            metadata=metadata,
        )

        def place(path: Path) -> None:
            if not self._linked(picture, path):
                _replace(path, picture.read_bytes())

        return self._put(info, place, needed=picture)

    def _put(self, info: AssetInfo, place: Callable[[Path], None], needed: Path | None = None) -> AssetInfo:
        """The picture, then its metadata, then both for good. `needed` is a file without which there is no asset."""
        picture = self._picture(info)
        with _told():
            for _ in range(TRIES):
                try:
                    _make_folder(picture.parent)
                    place(picture)
                    _replace(picture.with_suffix(".json"), info.to_json())
                    _sync(picture.parent)
                except FileNotFoundError:  # taken by a sweep from under this writer
                    if needed is not None and not needed.exists():
                        raise no_asset(needed.stem) from None
                else:
                    return info
        raise StoreUnavailable(f"the folder of {info.asset_id} vanishes again and again", hint="try again")

    def _place(self, data: bytes, sha256: str, path: Path) -> None:
        blob = self._blob(sha256)
        if self._hard_links:
            if _read_if_there(blob) != data:  # not there, or damaged: then this is its repair
                _make_folder(blob.parent)
                _replace(blob, data)
            if self._linked(blob, path):
                return
        _replace(path, data)

    def _linked(self, source: Path, path: Path) -> bool:
        """False where the file system cannot, or has counted as many names of this file as it can."""
        draft = _draft(path)
        try:
            os.link(source, draft)
        except OSError as error:
            if error.errno in _NO_LINKS:
                self._hard_links = False
            elif error.errno != errno.EMLINK:
                raise
            return False
        try:
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)  # replacing a name by another of the same file leaves both
        return True

    def _read(self, asset_id: str) -> Asset:
        """While an id is written again, the picture may be the new one and its metadata the old: seen by a second look.

        Until then the old bytes are in their blob.
        """
        for look in range(LOOKS):
            time.sleep(LOOK_S if look else 0.0)
            info = self._stat(asset_id)
            data = _read_if_there(self._picture(info))
            for found in (data, None if info.fits(data) else _read_if_there(self._blob(info.sha256))):
                if found is not None and info.fits(found):
                    return Asset(data=found, info=info)
        raise info.damaged(data)

    def _stat(self, asset_id: str) -> AssetInfo:
        record = _read_if_there(self._base(asset_id).with_suffix(".json"))
        if record is None:
            raise no_asset(asset_id)
        return AssetInfo.from_json(asset_id, record)

    def _delete(self, asset_ids: tuple[str, ...]) -> None:
        with _told():
            for base in map(self._base, asset_ids):
                record = _read_if_there(base.with_suffix(".json"))
                for suffix in SUFFIXES:
                    base.with_suffix(f".{suffix}").unlink(missing_ok=True)
                if record is not None:
                    self._drop_if_lone(record)

    def _drop_if_lone(self, record: bytes) -> None:
        """So that a deleted picture's bytes do not wait for `tidy`. A writer that wanted them writes them again."""
        with suppress(AssetCorrupted, FileNotFoundError):
            blob = self._blob(AssetInfo.from_json("", record).sha256)
            if blob.stat().st_nlink == 1:
                blob.unlink()

    def _write_aside(self, path: Path, data: bytes, durable: bool) -> None:
        self._check_room()
        with _told():
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, data, durable)

    def _tidy(self, now: float) -> None:
        for folder in self._blobs.iterdir():
            for file, stat in _files(folder):
                if stat.st_nlink == 1 and now - stat.st_ctime > LONE_S and not file.name.startswith("."):
                    file.unlink(missing_ok=True)
        for folder in [*self._blobs.iterdir(), *self._images.glob("*/*/"), *self._images.iterdir()]:
            for file, stat in _files(folder):
                if file.name.startswith(".") and now - stat.st_mtime > DRAFT_S:
                    file.unlink(missing_ok=True)
            with suppress(OSError):  # it is not empty, or another process was first
                if now - folder.stat().st_mtime > DRAFT_S:
                    folder.rmdir()

    def _sweep_previews(self, before: float) -> None:
        for folder in self._previews.iterdir():
            with suppress(FileNotFoundError):  # another process sweeps too
                if folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)

    def _picture(self, info: AssetInfo) -> Path:
        return self._base(info.asset_id).with_suffix(f".{info.format}")

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _input(self, name: str) -> Path:
        return self._inputs / checked(NAME, name)[:2] / f"{name}.png"

    def _base(self, asset_id: str) -> Path:
        """The picture's path without a suffix; a ULID begins with its time, so one folder holds 17 minutes."""
        checked(ASSET_ID, asset_id)
        return self._images / asset_id[:4] / asset_id[4:6] / asset_id


def _page(folder: Path) -> dict[str, float]:
    """By change time: a hard link to older bytes has their modification time."""
    newest: dict[str, float] = {}
    for file, stat in _files(folder):
        asset_id = file.name.partition(".")[0]
        if ASSET_ID.fullmatch(asset_id):
            newest[asset_id] = max(stat.st_ctime, newest.get(asset_id, 0.0))
    return dict(sorted(newest.items()))


def _input_page(folder: Path) -> dict[str, float]:
    return {file.stem: stat.st_mtime for file, stat in _files(folder) if NAME.fullmatch(file.stem)}


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with suppress(FileNotFoundError):  # others write and sweep at the same time
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), os.stat(entry.path)


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _replace(path: Path, data: bytes, durable: bool = True) -> None:
    """A reader sees the old file or the new one, never a part; nor does one after a power cut, where `durable`."""
    draft = _draft(path)
    try:
        with draft.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """The names in it, for good."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told() -> Iterator[None]:
    """A full or broken disk, in our words."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "free disk space in the data folder, or delete old pictures"
            raise StoreFull("the asset store is full", hint=hint, retry_after=60) from error
        if error.errno in _NOT_WRITABLE:
            hint = "the operator must look at the data folder"
            raise StoreUnavailable(f"the asset store cannot be written: {error.strerror}", hint=hint) from error
        raise
