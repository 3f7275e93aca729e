"""What the API knows of the engine room: submit, watch, cancel. The Dispatcher and its remote twin implement it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from serve.access.keys import ApiKey
from serve.messages import (
    AssetQuery,
    AssetView,
    Deletion,
    Event,
    JobQuery,
    JobView,
    ServiceStats,
    ServiceStatus,
    Submission,
)
from serve.metrics.statistics import ModelStatistics
from serve.quota import Usage


class ImageService(Protocol):
    async def submit(self, submission: Submission) -> str:
        """Takes a job into the queue, stored before this returns; submitting the same `job_id` again changes nothing.

        Returns the job's id: that of an earlier job where user and idempotency key are the same. Raises NotReady,
        QueueFull (with `retry_after`), DeadlineInfeasible, QuotaExceeded (with `retry_after`), or IdempotencyKeyReused
        for the same key with another body.
        """

    def watch(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events with `seq > after`, oldest first, ending after the Terminal one. Raises NotFound."""

    async def cancel(self, job_id: str) -> None:
        """Drops a queued job at once, stops a running one at its next step; nothing when terminal. Raises NotFound."""

    async def get(self, job_id: str) -> JobView:
        """Raises NotFound."""

    async def find(self, query: JobQuery) -> list[JobView]:
        """At most `query.limit` jobs, newest first."""

    async def delete(self, job_id: str) -> JobView:
        """Cancels it where needed and drops the record with its pictures; returns what it was. Raises NotFound."""

    async def find_assets(self, query: AssetQuery) -> list[AssetView]:
        """At most `query.limit` pictures, newest first."""

    async def delete_assets(self, user: str | None, ids: tuple[str, ...]) -> Deletion:
        """Those of them that are the user's, or all where that is None.

        Their links are dead when this returns, or shortly after it.
        """

    async def delete_all_assets(self, user: str, confirm: int | None) -> Deletion:
        """Raises InvalidRequest, and deletes nothing, where `confirm` is not their number."""

    async def status(self) -> ServiceStatus: ...

    async def usage(self, user: str) -> Usage:
        """What the user has drawn until now."""

    async def api_keys(self) -> list[ApiKey]:
        """Oldest first, revoked and expired ones too."""

    async def add_api_key(self, key: ApiKey) -> None: ...

    async def revoke_api_key(self, key_id: str) -> ApiKey:
        """Raises NotFound."""

    async def stats(self) -> ServiceStats: ...

    async def active(self, limit: int) -> list[JobView]:
        """Everybody's jobs that have not ended: those that have begun, then the others in serving order."""

    async def hold(self, paused: bool) -> None:
        """Paused, nothing more is placed until it is resumed, also after a restart; jobs are taken in all the same."""

    async def statistics(self) -> dict[str, ModelStatistics]:
        """Triton's counts of all models and their parts, by their names, since the service started.

        Every answer that was given before is included.
        """

    async def metrics(self) -> str:
        """The whole service in Prometheus' text format, every answer that was given before included."""
