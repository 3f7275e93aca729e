"""Answers that need no GPU: pictures that a finished job has, given to an identical one as its own."""

from __future__ import annotations

import time
from dataclasses import replace

from serve.assets.store import AssetStore
from serve.errors import NotFound, StaleWriter
from serve.jobs import pictures
from serve.jobs.cache import CacheIndex, Entry, Key, cache_key
from serve.jobs.job import Job
from serve.jobs.record import JobRecord
from serve.jobs.store import JobStore
from serve.messages import JobStatus, StoredImage, Submission, Timings
from serve.settings import CacheSettings


class Results:
    """The index is in memory, made anew from the job store; the files are assets of the jobs that drew them."""

    def __init__(self, settings: CacheSettings, store: JobStore, assets: AssetStore) -> None:
        self._settings = settings
        self._store = store
        self._assets = assets
        self._index = CacheIndex(settings)

    def __len__(self) -> int:
        """Results that it can answer with."""
        return len(self._index)

    async def load(self) -> None:
        """Takes up what an earlier Dispatcher knew."""
        if not self._settings.enabled:
            return
        rows = await self._store.cached(time.time() - self._settings.ttl_s, self._settings.max_bytes)
        for row in reversed(rows):  # the newest is the most recently used
            self._index.put(self._index.key(row.user, row.cache_key), Entry(images=row.images, at=row.completed_at))

    def cache_key(self, submission: Submission, engine: str) -> str | None:
        return cache_key(submission, engine, self._settings)

    def key(self, submission: Submission, cache_key: str | None) -> Key | None:
        """Equal for jobs that may share a result; None for one that shares its own with nobody."""
        return self._index.key(submission.user, cache_key) if cache_key else None

    def find(self, submission: Submission, cache_key: str | None) -> tuple[StoredImage, ...] | None:
        """Pictures of another job; they may be gone by now."""
        found = self._entry(submission, cache_key)
        return found[1].images if found else None

    def keep(self, job: Job, images: tuple[StoredImage, ...], engine: str) -> None:
        """For later identical requests, unless it is not whole or something else than expected has drawn it."""
        if job.cache_key != self.cache_key(job.submission, engine) or job.failures:
            job.cache_key = None
        if key := self.key(job.submission, job.cache_key):
            self._index.put(key, Entry(images=images, at=time.time()))

    async def answer(self, submission: Submission, cache_key: str | None) -> JobRecord | None:
        """A job that is stored with its result; None where there is none. Raises what storing raises."""
        began = time.time()
        if (found := self._entry(submission, cache_key)) is None:
            return None
        key, entry = found
        try:
            images = await pictures.link(self._assets, submission, entry.images)
        except NotFound:
            self._index.drop(key, entry)
            return None
        ended = time.time()
        record = JobRecord(
            submission=submission,
            created_at=began,
            completed_at=ended,
            status=JobStatus.SUCCEEDED,
            seq=1,
            images=images,
            timings=Timings(total_ms=1e3 * (ended - began)),
            cache="hit",
        )
        try:
            stored = await self._store.add(record)
        except StaleWriter:  # another Dispatcher may be answering the same job
            raise
        except Exception:
            await pictures.drop(self._assets, images)
            raise
        if stored.id != submission.job_id:  # it repeats an earlier job
            await pictures.drop(self._assets, images)
        return stored

    async def adopt(self, job: Job, images: tuple[StoredImage, ...]) -> tuple[StoredImage, ...] | None:
        """The pictures as the job's own; None when it has ended meanwhile. Raises NotFound when one is gone."""
        own = await pictures.link(self._assets, job.submission, images)
        if job.wanted:
            return own
        await pictures.drop(self._assets, own)
        return None

    async def drop(self, images: list[StoredImage]) -> None:
        await pictures.drop(self._assets, images)

    async def drop_all(self, submission: Submission) -> None:
        """Whatever a job may have left."""
        images = range(submission.request.n)
        await self._assets.delete(*(pictures.asset_id(submission.job_id, image) for image in images))

    def _entry(self, submission: Submission, cache_key: str | None) -> tuple[Key, Entry] | None:
        key = self.key(submission, cache_key)
        entry = self._index.get(key) if key and submission.cache == "auto" else None
        return (key, entry) if key and entry else None


def joined(timings: Timings, started_at: float | None, created_at: float) -> Timings:
    """Of a job whose pictures were drawn for another one."""
    queue_s = max(0.0, (started_at or created_at) - created_at)
    return replace(timings, queue_ms=1e3 * queue_s, total_ms=1e3 * (time.time() - created_at))
