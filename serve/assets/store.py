"""What an asset store is: finished pictures and previews, each picture with its metadata JSON beside it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import structlog

from serve.errors import AssetCorrupted, NotFound
from serve.messages import ImageFormat, Series

log = structlog.get_logger()

Data = bytes  # where a field is called so
ULID = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
JOB_ID = re.compile(ULID)
ASSET_ID = re.compile(f"({ULID})-(0|[1-9][0-9]?)")
PREVIEW_KEY = re.compile(f"({ULID})/[A-Za-z0-9_-]+(?:\\.[a-z]+)?")
THUMBNAIL = "thumbnail.webp"
LOOKS, LOOK_S = 5, 0.1  # before a picture that does not fit its metadata is called damaged
SUFFIXES = ("json", "png", "jpeg", "webp", THUMBNAIL)  # of the files that a picture may have; it exists with the first


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetInfo:
    """What is known of a picture without reading it; `sha256` is hexadecimal, `created_at` Unix time in seconds."""

    asset_id: str
    format: ImageFormat
    bytes: int
    sha256: str
    created_at: float
    metadata: dict[str, Any]

    @classmethod
    def of(cls, asset_id: str, data: Data, format: ImageFormat, metadata: dict[str, Any]) -> AssetInfo:
        return cls(
            asset_id=asset_id,
            format=format,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_at=time.time(),
            metadata=metadata,
        )

    @classmethod
    def from_json(cls, asset_id: str, text: Data) -> AssetInfo:
        """Raises AssetCorrupted."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise _corrupted(asset_id, "its metadata cannot be read") from error

    def to_json(self) -> Data:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode()

    def fits(self, data: Data | None) -> bool:
        return data is not None and len(data) == self.bytes and hashlib.sha256(data).hexdigest() == self.sha256

    def damaged(self, data: Data | None) -> AssetCorrupted:
        what = "its file is missing" if data is None else "its bytes do not have the SHA-256 that they were stored with"
        return _corrupted(self.asset_id, what)

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
    """Pictures by asset id `{job ULID}-{image index}`, previews by key `{job ULID}/{name}`.

    A picture exists when its metadata JSON does: that is written last and removed first. Everything raises
    StoreUnavailable where the store does not answer.
    """

    async def check_room(self) -> None:
        """Raises StoreFull when a picture would not be taken."""

    async def measure(self) -> dict[Series, float]:
        """Gauges of the store; what it cannot know has no sample."""

    async def write(self, asset_id: str, data: bytes, format: ImageFormat, metadata: dict[str, Any]) -> AssetInfo:
        """Whole or not at all, and for good: it survives a power cut. An id written again is replaced.

        Raises StoreFull.
        """

    async def link(self, source_id: str, target_id: str, metadata: dict[str, Any]) -> AssetInfo:
        """The same bytes under another id, without copying where that can be; each lives without the other.

        Raises NotFound when the source is gone or cut short, StoreFull.
        """

    async def read(self, asset_id: str) -> Asset:
        """Compared with its SHA-256. Raises NotFound, AssetCorrupted."""

    async def stat(self, asset_id: str) -> AssetInfo:
        """Raises NotFound."""

    async def delete(self, *asset_ids: str) -> None:
        """With their thumbnails; what does not exist is skipped."""

    async def write_thumbnail(self, asset_id: str, data: bytes) -> None:
        """WebP. Raises StoreFull."""

    async def read_thumbnail(self, asset_id: str) -> bytes | None: ...

    def listing(self) -> AsyncIterator[dict[str, float]]:
        """Every id that has any file, with the Unix time at which the newest of them was written.

        In ascending order of jobs; a page never splits one.
        """

    async def tidy(self) -> None:
        """Drops what writers that died have left, and bytes that no picture refers to any more."""

    async def write_input(self, name: str, data: bytes) -> None:
        """An input picture (`serve/inputs.py`), for good. Written again it is as new as if it had not been there.

        Raises StoreFull.
        """

    async def read_input(self, name: str) -> bytes | None: ...

    def inputs(self) -> AsyncIterator[dict[str, float]]:
        """Every name, with the Unix time at which it was last written."""

    async def delete_inputs(self, *names: str) -> None: ...

    async def write_preview(self, key: str, data: bytes) -> None:
        """Raises StoreFull."""

    async def read_preview(self, key: str) -> bytes | None: ...

    async def delete_previews(self, job_id: str) -> None: ...

    async def sweep_previews(self, older_than_s: float) -> None:
        """Drops the previews of jobs that have written none for so long."""


def checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.fullmatch(name):
        raise no_asset(name)
    return name


def no_asset(name: str) -> NotFound:
    return NotFound(f"no asset {name[:64]!r}", param="asset_id", hint="it may have been deleted")


def _corrupted(asset_id: str, what: str) -> AssetCorrupted:
    log.error("a stored picture is damaged", asset_id=asset_id, what=what)
    hint = "draw it again, with its job's rerun; the operator's storage or backup may need a look"
    return AssetCorrupted(f"the stored picture {asset_id} is damaged: {what}", param="asset_id", hint=hint)
