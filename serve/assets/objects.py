"""An asset store in S3, or in whatever speaks its language: one for all processes on all machines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import MemoryStore, S3Store

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
from serve.errors import StoreUnavailable
from serve.inputs import NAME
from serve.messages import ImageFormat, Series

log = structlog.get_logger()
KEYS_AT_ONCE = 1000  # S3 lists, and deletes, so many in one call
RETRY_AFTER_S = 5


class ObjectAssets:
    """An AssetStore. Keys are `images/{asset_id}.png`, `.json`, `.thumbnail.webp`, `inputs/{name}`, `previews/{key}`.

    It has no end, so there is always room. An object is there for good when its write returns, whole or not at all.
    """

    def __init__(self, store: S3Store | MemoryStore) -> None:
        self._store = store

    async def check_room(self) -> None:
        return

    async def measure(self) -> dict[Series, float]:
        return {}

    async def write(self, asset_id: str, data: bytes, format: ImageFormat, metadata: dict[str, Any]) -> AssetInfo:
        checked(ASSET_ID, asset_id)
        info = await asyncio.to_thread(AssetInfo.of, asset_id, data, format, metadata)
        with _told():
            await self._put(_key(asset_id, format), data, info.media_type)
            await self._put(_key(asset_id, "json"), info.to_json(), "application/json")
        return info

    async def link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        source = await self.stat(source_id)
        info = AssetInfo(
            asset_id=checked(ASSET_ID, target_id),
            format=source.format,
            bytes=source.bytes,
            sha256=source.sha256,
            created_at=time.time(),
            metadata=metadata,
        )
        with _told():
            try:
                if source_id != target_id:  # which S3 refuses
                    await obstore.copy_async(self._store, _key(source_id, info.format), _key(target_id, info.format))
            except FileNotFoundError:
                raise no_asset(source_id) from None
            await self._put(_key(target_id, "json"), info.to_json(), "application/json")
        return info

    async def read(self, asset_id: str) -> Asset:
        """While an id is written again, the picture may be the new one and its metadata the old: looked at again."""
        for look in range(LOOKS):
            await asyncio.sleep(LOOK_S if look else 0.0)
            info = await self.stat(asset_id)
            data = await self._get(_key(asset_id, info.format))
            if data is not None and await asyncio.to_thread(info.fits, data):
                return Asset(data=data, info=info)
        raise info.damaged(data)

    async def stat(self, asset_id: str) -> AssetInfo:
        record = await self._get(_key(asset_id, "json"))
        if record is None:
            raise no_asset(asset_id)
        return AssetInfo.from_json(asset_id, record)

    async def delete(self, *asset_ids: str) -> None:
        await self._delete([_key(asset_id, "json") for asset_id in asset_ids])
        await self._delete([_key(asset_id, suffix) for asset_id in asset_ids for suffix in SUFFIXES[1:]])

    async def write_thumbnail(self, asset_id: str, data: bytes) -> None:
        with _told():
            await self._put(_key(asset_id, THUMBNAIL), data, "image/webp")

    async def read_thumbnail(self, asset_id: str) -> bytes | None:
        return await self._get(_key(asset_id, THUMBNAIL))

    async def listing(self) -> AsyncIterator[dict[str, float]]:
        """The store lists by key, so a page's last job may go on in the next one: it is told with that."""
        held: dict[str, float] = {}
        async for key, written_at in self._keys("images"):
            asset_id = key.removeprefix("images/").partition(".")[0]
            if not ASSET_ID.fullmatch(asset_id):
                continue
            if len(held) >= KEYS_AT_ONCE and asset_id[:26] != next(reversed(held))[:26]:
                yield held
                held = {}
            held[asset_id] = max(written_at, held.get(asset_id, 0.0))
        if held:
            yield held

    async def tidy(self) -> None:
        """Nothing: objects have no drafts, and each picture has bytes of its own."""

    async def write_input(self, name: str, data: bytes) -> None:
        with _told():
            await self._put(f"inputs/{checked(NAME, name)}", data, "image/png")

    async def read_input(self, name: str) -> bytes | None:
        return await self._get(f"inputs/{checked(NAME, name)}")

    async def inputs(self) -> AsyncIterator[dict[str, float]]:
        page: dict[str, float] = {}
        async for key, written_at in self._keys("inputs"):
            page[key.removeprefix("inputs/")] = written_at
            if len(page) >= KEYS_AT_ONCE:
                yield page
                page = {}
        yield page

    async def delete_inputs(self, *names: str) -> None:
        await self._delete([f"inputs/{checked(NAME, name)}" for name in names])

    async def write_preview(self, key: str, data: bytes) -> None:
        with _told():
            await self._put(f"previews/{checked(PREVIEW_KEY, key)}", data, "application/octet-stream")

    async def read_preview(self, key: str) -> bytes | None:
        return await self._get(f"previews/{checked(PREVIEW_KEY, key)}")

    async def delete_previews(self, job_id: str) -> None:
        await self._delete([key async for key, _ in self._keys(f"previews/{checked(JOB_ID, job_id)}")])

    async def sweep_previews(self, older_than_s: float) -> None:
        newest: dict[str, float] = {}
        async for key, written_at in self._keys("previews"):
            job_id = key.split("/")[1]
            newest[job_id] = max(written_at, newest.get(job_id, 0.0))
        for job_id, written_at in newest.items():
            if written_at < time.time() - older_than_s:
                await self.delete_previews(job_id)

    async def _put(self, key: str, data: bytes, media_type: str) -> None:
        await obstore.put_async(self._store, key, data, attributes={"Content-Type": media_type})

    async def _get(self, key: str) -> bytes | None:
        with _told():
            try:
                return bytes(await (await obstore.get_async(self._store, key)).bytes_async())
            except FileNotFoundError:
                return None

    async def _delete(self, keys: list[str]) -> None:
        with _told():
            for chunk in _chunks(keys):
                await obstore.delete_async(self._store, chunk)

    async def _keys(self, prefix: str) -> AsyncIterator[tuple[str, float]]:
        """With the Unix time at which each was written."""
        with _told():
            async for chunk in obstore.list(self._store, prefix=prefix, chunk_size=KEYS_AT_ONCE):
                for found in chunk:
                    yield found["path"], found["last_modified"].timestamp()


def _key(asset_id: str, suffix: str) -> str:
    return f"images/{checked(ASSET_ID, asset_id)}.{suffix}"


def _chunks(keys: list[str]) -> Iterable[list[str]]:
    return (keys[i : i + KEYS_AT_ONCE] for i in range(0, len(keys), KEYS_AT_ONCE))


def reason(error: Exception) -> str:
    """The first line of what obstore says; the rest is a dump of its request."""
    return str(error).partition("\n")[0]


@contextmanager
def _told() -> Iterator[None]:
    """The store's errors stay in the log: they name hosts and keys that are nobody else's business."""
    try:
        yield
    except (BaseError, OSError) as error:
        log.error("the asset store does not answer", error=reason(error))
        hint = "try again; the server's log has the reason"
        raise StoreUnavailable("the asset store does not answer", hint=hint, retry_after=RETRY_AFTER_S) from error
