"""What the API knows of the engine room: submit, watch, cancel. The Dispatcher and its remote twin implement it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from serve.messages import Event, JobQuery, JobView, ServiceStats, ServiceStatus, Submission


class ImageService(Protocol):
    async def submit(self, submission: Submission) -> str:
        """Takes a job into the queue, stored before this returns; submitting the same `job_id` again changes nothing.

        Returns the job's id: that of an earlier job where user and idempotency key are the same. Raises NotReady,
        QueueFull (with `retry_after`), DeadlineInfeasible, or IdempotencyKeyReused for the same key with another body.
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
        """Cancels it where needed and drops the record; returns what it was. Raises NotFound."""

    async def status(self) -> ServiceStatus: ...

    async def stats(self) -> ServiceStats: ...

    async def active(self, limit: int) -> list[JobView]:
        """Everybody's jobs that have not ended: those that have begun, then the others in serving order."""

    async def hold(self, paused: bool) -> None:
        """Paused, nothing more is placed until it is resumed, also after a restart; jobs are taken in all the same."""
