"""What the API knows of the engine room: submit, watch, cancel. The Dispatcher and its remote twin implement it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from serve.messages import Event, ServiceStatus, Submission


class ImageService(Protocol):
    async def submit(self, submission: Submission) -> None:
        """Takes a job into the queue; submitting the same `job_id` again changes nothing.

        Raises NotReady, QueueFull (with `retry_after`) or DeadlineInfeasible.
        """

    def watch(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events with `seq > after`, oldest first, ending after the Terminal one. Raises NotFound."""

    async def cancel(self, job_id: str) -> None:
        """Drops a queued job at once, stops a running one at its next step; nothing when terminal. Raises NotFound."""

    async def status(self) -> ServiceStatus: ...
