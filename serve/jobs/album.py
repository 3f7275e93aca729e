"""Pictures of jobs, for their owners: found, deleted, and kept no longer than they should be."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any

from serve.assets.store import AssetStore
from serve.jobs import gallery
from serve.jobs.arrivals import Arrivals
from serve.jobs.keeper import Keeper
from serve.jobs.memory import Memory
from serve.jobs.store import JobStore
from serve.jobs.tasks import Tasks
from serve.messages import AssetQuery, AssetView, Deletion, JobView
from serve.settings import RetentionSettings

FILES_S = 5.0


class Album:
    def __init__(
        self,
        retention: RetentionSettings,
        *,
        store: JobStore,
        assets: AssetStore,
        jobs: Memory,
        arrivals: Arrivals,
        tasks: Tasks,
    ) -> None:
        self._store = store
        self._assets = assets
        self._jobs = jobs
        self._arrivals = arrivals
        self._tasks = tasks
        self.keeper = Keeper(store, assets, retention, self._busy, self._forget)

    async def find(self, query: AssetQuery) -> list[AssetView]:
        return await self._store.look(partial(gallery.find, query=query))

    async def delete(self, user: str | None, ids: tuple[str, ...]) -> Deletion:
        return await self._with_files(await self.keeper.delete(list(ids), user))

    async def delete_all(self, user: str, confirm: int | None) -> Deletion:
        return await self._with_files(await self.keeper.delete_all(user, confirm))

    async def drop(self, view: JobView) -> None:
        """Of a job that was stopped half-way, too, whose pictures have no rows."""
        await self._soon(self._drop(view))

    async def _drop(self, view: JobView) -> None:
        await self._assets.delete(*(f"{view.id}-{image}" for image in range(view.request.n)))
        await self._assets.delete_previews(view.id)

    async def _with_files(self, deletion: Deletion) -> Deletion:
        if deletion.deleted:
            await self._soon(self.keeper.sweep())
        return deletion

    async def _soon(self, removal: Coroutine[Any, Any, None]) -> None:
        """Waits for files to be gone; very many, or those of a slow store, go on without the caller."""
        await asyncio.wait({self._tasks.spawn(removal)}, timeout=FILES_S)

    def _busy(self) -> set[str]:
        return {job.id for job in self._jobs.active() if not job.status.terminal} | self._arrivals.ids

    def _forget(self, asset_ids: Iterable[str]) -> None:
        gone = set(asset_ids)
        for job_id in {asset_id.rpartition("-")[0] for asset_id in gone} & self._jobs.keys():
            self._jobs[job_id].forget_pictures(gone)
