"""Keeps pictures and rows true to each other: removes what is to go, too old, too much, or astray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.assets.store import AssetStore
from serve.errors import NotFound, StaleWriter, ZImageError
from serve.jobs import gallery, inputs
from serve.jobs.store import JobStore
from serve.messages import Deletion
from serve.settings import RetentionSettings

log = structlog.get_logger()

ROUND_S = 60.0
AT_ONCE = 1000
RECONCILE_AFTER_S, RECONCILE_EVERY_S = 300.0, 6 * 3600.0
INPUTS_EVERY_S = 600.0
INPUT_S = 600.0  # an input picture waits for its job to be stored, whose Gateway wrote it just before
SAFE_AGE_S = 3600.0  # a picture waits for its job's other pictures, and for the job store, before it has a row
STUCK_S = 3600.0  # until files that cannot be removed are tried again
UNLIKELY, MOST = 100, 10_000  # see _Findings


class Keeper:
    """The Dispatcher's; `busy` are the jobs that have not ended, `forget` is told which pictures are gone."""

    def __init__(
        self,
        store: JobStore,
        assets: AssetStore,
        retention: RetentionSettings,
        busy: Callable[[], Collection[str]],
        forget: Callable[[Iterable[str]], None],
    ) -> None:
        self._store = store
        self._assets = assets
        self._retention = retention
        self._busy = busy
        self._forget = forget
        self._sweeping = asyncio.Lock()

    async def run(self) -> None:
        reconcile_at = time.monotonic() + RECONCILE_AFTER_S
        inputs_at = 0.0
        while True:
            try:
                await self.sweep()
                if time.monotonic() >= inputs_at:
                    await self.sweep_inputs()
                    inputs_at = time.monotonic() + INPUTS_EVERY_S
                if time.monotonic() >= reconcile_at:
                    await self.reconcile()
                    reconcile_at = time.monotonic() + RECONCILE_EVERY_S
            except StaleWriter:
                raise
            except (ZImageError, OSError, DBAPIError) as error:  # the database or the asset store is away: next time
                log.warning("pictures could not be looked after", error=str(error))
            await asyncio.sleep(ROUND_S)

    async def delete(self, ids: list[str], user: str | None) -> Deletion:
        """Rows now; their files as soon as may be."""
        deletion = await self._store.change(partial(gallery.delete_some, ids=ids, user=user))
        self._forget(deletion.deleted)
        return deletion

    async def delete_all(self, user: str, confirm: int | None) -> Deletion:
        """Raises InvalidRequest where `confirm` is not their number."""
        deletion = await self._store.change(partial(gallery.delete_all, user=user, confirm=confirm))
        if not isinstance(deletion, Deletion):
            raise deletion
        self._forget(deletion.deleted)
        return deletion

    async def sweep(self) -> None:
        """Retention, and then the files of all that is to go."""
        await self._retain()
        async with self._sweeping:  # by turns: nobody removes twice
            while ids := await self._store.look(partial(gallery.due, limit=AT_ONCE)):
                stuck = await self._remove(ids)
                await self._store.change(partial(gallery.removed, ids=[id for id in ids if id not in stuck]))
                await self._store.change(partial(gallery.postpone, ids=stuck, due_at=time.time() + STUCK_S))

    async def _remove(self, ids: list[str]) -> list[str]:
        """Returns those whose files cannot be removed: they must not hold up all others."""
        with suppress(OSError):
            await self._assets.delete(*ids)
            return []
        stuck = []
        for id in ids:
            try:
                await self._assets.delete(id)
            except OSError as error:
                log.error("a picture's files cannot be removed", asset_id=id, error=str(error))
                stuck.append(id)
        return stuck

    async def _retain(self) -> None:
        age, most = self._retention.max_age_s, self._retention.max_bytes
        if age is not None:
            await self._expire("age", partial(gallery.too_old, before=time.time() - age, limit=AT_ONCE))
        if most is not None:
            await self._expire("bytes", partial(gallery.over_budget, max_bytes=most, limit=AT_ONCE))

    async def _expire(self, limit: str, oldest: Callable[[AsyncConnection], Awaitable[list[str]]]) -> None:
        count = 0
        while ids := await self._store.look(oldest):
            count += len((await self.delete(ids, None)).deleted)
        if count:
            log.info("pictures removed by retention", limit=limit, pictures=count)

    async def sweep_inputs(self) -> None:
        """Removes input pictures that no job needs any more, or ever came to need."""
        before = time.time() - INPUT_S
        async for page in self._assets.inputs():
            old = [name for name, at in page.items() if at < before]
            if unneeded := await self._store.look(partial(inputs.unneeded, names=old)):
                await self._assets.delete_inputs(*unneeded)

    async def reconcile(self) -> None:
        """Files without a row are removed, and rows without a file."""
        found = _Findings()
        before = time.time() - SAFE_AGE_S
        after = ""
        async for page in self._assets.listing():
            upto = max(page)[:26]
            rows = set(await self._store.look(partial(gallery.between, after=after, upto=upto)))
            found.compare(page, rows, before, self._busy())
            after = upto
        found.compare({}, set(await self._store.look(partial(gallery.between, after=after, upto=None))), before, ())
        if found.unlikely():
            log.error(
                "pictures and the job store do not belong together: is this the right folder or bucket, and database?",
                pictures=found.files,
                without_row=found.without_row,
                rows=found.rows,
                without_picture=found.without_file,
            )
            return
        if strays := await self._store.change(partial(gallery.remove_strays, ids=found.strays)):
            log.warning("files without a job were removed", files=len(strays))
        if gone := [id for id in found.missing if not await self._is_there(id)]:
            await self.delete(gone, None)
            log.error("pictures have vanished from the asset store", pictures=len(gone), first=gone[0])
        await self._assets.tidy()
        await self.sweep()

    async def _is_there(self, asset_id: str) -> bool:
        with suppress(NotFound):
            await self._assets.stat(asset_id)
            return True
        return False


class _Findings:
    """What a look at all files and all rows came to.

    A few strays are what crashes leave. Where most of many files or rows have no partner, the folder is not mounted,
    or the database is another one, or an old one; then nothing is touched. What is over `MOST` waits for the next time.
    """

    def __init__(self) -> None:
        self.files = self.rows = self.without_row = self.without_file = 0
        self.strays: list[str] = []
        self.missing: list[str] = []

    def compare(self, page: dict[str, float], rows: set[str], before: float, busy: Collection[str]) -> None:
        strays = [id for id, at in page.items() if id not in rows and at < before and id[:26] not in busy]
        missing = rows - page.keys()
        self.files += len(page)
        self.rows += len(rows)
        self.without_row += len(strays)
        self.without_file += len(missing)
        self.strays = (self.strays + strays)[:MOST]
        self.missing = (self.missing + sorted(missing))[:MOST]

    def unlikely(self) -> bool:
        return any(
            lonely > UNLIKELY and 2 * lonely > total
            for lonely, total in ((self.without_row, self.files), (self.without_file, self.rows))
        )
