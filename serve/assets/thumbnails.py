"""Small pictures for galleries: made when first asked for, and kept beside their picture."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO

from PIL import Image

from serve.assets.store import AssetStore
from serve.errors import NotFound, StoreFull, StoreUnavailable

SIDE_PX = 256
QUALITY = 80
WORKERS = 2  # a page of a gallery asks for many at once, and must leave something of the machine to others


class Thumbnails:
    """WebP, the longest side 256 pixels or that of a smaller picture; off the event loop."""

    def __init__(self, assets: AssetStore) -> None:
        self._assets = assets
        self._workers = ThreadPoolExecutor(WORKERS, "thumbnails")

    async def get(self, asset_id: str) -> bytes:
        """Raises NotFound, AssetCorrupted."""
        kept = await self._assets.read_thumbnail(asset_id)
        if kept is not None:
            return kept
        asset = await self._assets.read(asset_id)
        data = await asyncio.get_running_loop().run_in_executor(self._workers, shrink, asset.data)
        with suppress(StoreFull, StoreUnavailable):  # it is made again next time
            await self._assets.write_thumbnail(asset_id, data)
            await self._check_still_there(asset_id)
        return data

    async def _check_still_there(self, asset_id: str) -> None:
        """A picture that was deleted meanwhile leaves no thumbnail. Raises NotFound."""
        try:
            await self._assets.stat(asset_id)
        except NotFound:
            await self._assets.delete(asset_id)
            raise


def shrink(data: bytes) -> bytes:
    image = Image.open(BytesIO(data))
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def etag(sha256: str) -> str:
    """Follows from the picture's own, so it is known without the thumbnail."""
    return f'"{sha256}-{SIDE_PX}"'
