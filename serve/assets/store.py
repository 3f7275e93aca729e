"""Finished pictures and previews as files, each picture with its metadata JSON beside it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from serve.errors import NotFound, StoreFull
from serve.messages import ImageFormat

MIN_FREE_BYTES = 64 << 20

_ULID = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
_JOB_ID = re.compile(_ULID)
_ASSET_ID = re.compile(f"({_ULID})-(0|[1-9][0-9]?)")
_PREVIEW_KEY = re.compile(f"({_ULID})/[A-Za-z0-9_-]+(?:\\.[a-z]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetInfo:
    """What is known of a picture without reading it; `sha256` is hexadecimal, `created_at` Unix time in seconds."""

    asset_id: str
    format: ImageFormat
    bytes: int
    sha256: str
    created_at: float
    metadata: dict[str, Any]

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    data: bytes
    info: AssetInfo

    @property
    def media_type(self) -> str:
        return self.info.media_type

    @property
    def metadata(self) -> dict[str, Any]:
        return self.info.metadata


class AssetStore(Protocol):
    """Pictures by asset id `{job ULID}-{image index}`, previews by key `{job ULID}/{name}`."""

    async def check_room(self) -> None:
        """Raises StoreFull when a picture would not be taken."""

    async def write(self, asset_id: str, data: bytes, format: ImageFormat, metadata: dict[str, Any]) -> None:
        """Whole or not at all; writing an id again replaces it. Raises StoreFull."""

    async def read(self, asset_id: str) -> Asset:
        """Raises NotFound."""

    async def stat(self, asset_id: str) -> AssetInfo:
        """Raises NotFound."""

    async def link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        """The same bytes under another id, whole or not at all, without copying them where the store can.

        Raises NotFound when the source is gone or damaged, and StoreFull.
        """

    async def delete(self, asset_id: str) -> None:
        """Nothing when it does not exist."""

    async def write_preview(self, key: str, data: bytes) -> None:
        """Raises StoreFull."""

    async def read_preview(self, key: str) -> bytes | None: ...

    async def delete_previews(self, job_id: str) -> None: ...

    async def sweep_previews(self, older_than_s: float) -> None:
        """Drops the previews of jobs that have written none for so long."""


class LocalAssets:
    """An AssetStore in a folder, for one machine.

    The metadata file is written last and removed first: a picture exists when its metadata does.
    """

    def __init__(self, root: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._images = root / "images"
        self._previews = root / "previews"
        self._min_free_bytes = min_free_bytes
        self._images.mkdir(parents=True, exist_ok=True)
        self._previews.mkdir(parents=True, exist_ok=True)

    async def check_room(self) -> None:
        await asyncio.to_thread(self._check_room)

    async def write(self, asset_id: str, data: bytes, format: ImageFormat, metadata: dict[str, Any]) -> None:
        await asyncio.to_thread(self._write, asset_id, data, format, metadata)

    async def read(self, asset_id: str) -> Asset:
        return await asyncio.to_thread(self._read, asset_id)

    async def stat(self, asset_id: str) -> AssetInfo:
        return await asyncio.to_thread(self._stat, asset_id)

    async def link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        return await asyncio.to_thread(self._link, source_id, target_id, metadata)

    async def delete(self, asset_id: str) -> None:
        await asyncio.to_thread(self._delete, asset_id)

    async def write_preview(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._write_preview, key, data)

    async def read_preview(self, key: str) -> bytes | None:
        return await asyncio.to_thread(_read_if_there, self._previews / _checked(_PREVIEW_KEY, key))

    async def delete_previews(self, job_id: str) -> None:
        folder = self._previews / _checked(_JOB_ID, job_id)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def sweep_previews(self, older_than_s: float) -> None:
        await asyncio.to_thread(self._sweep_previews, time.time() - older_than_s)

    def _sweep_previews(self, before: float) -> None:
        for folder in self._previews.iterdir():
            with suppress(FileNotFoundError):  # another process sweeps too
                if folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._images).free
        if free < self._min_free_bytes:
            raise StoreFull(
                f"the asset store has {free >> 20} MiB free, {self._min_free_bytes >> 20} MiB are the least",
                hint="free disk space in the data folder, or delete old pictures",
                retry_after=60,
            )

    def _write(self, asset_id: str, data: bytes, format: ImageFormat, metadata: dict[str, Any]) -> None:
        base = self._base(asset_id)
        self._check_room()
        info = AssetInfo(
            asset_id=asset_id,
            format=format,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_at=time.time(),
            metadata=metadata,
        )
        _replace(base.with_suffix(f".{format}"), data)
        _replace(base.with_suffix(".json"), _record(info))

    def _link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        source = self._stat(source_id)
        path, target = (self._base(id).with_suffix(f".{source.format}") for id in (source_id, target_id))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            os.link(path, draft)
        except FileNotFoundError:
            raise _no_asset(source_id) from None
        if draft.stat().st_size != source.bytes:
            draft.unlink()
            raise _no_asset(source_id)
        os.replace(draft, target)
        info = replace(source, asset_id=target_id, created_at=time.time(), metadata=metadata)
        _replace(self._base(target_id).with_suffix(".json"), _record(info))
        return info

    def _read(self, asset_id: str) -> Asset:
        info = self._stat(asset_id)
        data = _read_if_there(self._base(asset_id).with_suffix(f".{info.format}"))
        if data is None:
            raise _no_asset(asset_id)
        return Asset(data=data, info=info)

    def _stat(self, asset_id: str) -> AssetInfo:
        record = _read_if_there(self._base(asset_id).with_suffix(".json"))
        if record is None:
            raise _no_asset(asset_id)
        return AssetInfo(**json.loads(record))

    def _delete(self, asset_id: str) -> None:
        base = self._base(asset_id)
        base.with_suffix(".json").unlink(missing_ok=True)
        for path in base.parent.glob(f"{asset_id}.*"):
            path.unlink(missing_ok=True)

    def _write_preview(self, key: str, data: bytes) -> None:
        path = self._previews / _checked(_PREVIEW_KEY, key)
        self._check_room()
        _replace(path, data)

    def _base(self, asset_id: str) -> Path:
        """The picture's path without a suffix; a ULID begins with its time, so one folder holds 17 minutes."""
        _checked(_ASSET_ID, asset_id)
        return self._images / asset_id[:4] / asset_id[4:6] / asset_id


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.fullmatch(name):
        raise _no_asset(name)
    return name


def _record(info: AssetInfo) -> bytes:
    return json.dumps(asdict(info), ensure_ascii=False, indent=1).encode()


def _no_asset(name: str) -> NotFound:
    return NotFound(f"no asset {name[:64]!r}", param="asset_id", hint="it may have been deleted")


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("the asset store is full", hint="free disk space in the data folder") from error
        raise
