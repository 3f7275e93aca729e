"""The process that owns the queue. Exactly one replica; it never touches pixels or tensors."""

from __future__ import annotations

from ray.serve.handle import DeploymentHandle

from deployments.remote import RemoteBackend
from serve import logs
from serve.api.webhooks import open_courier
from serve.assets.open import open_assets
from serve.jobs.dispatcher import Dispatcher as Jobs
from serve.jobs.outboxes import Outboxes
from serve.jobs.store import store_of
from serve.messages import (
    AssetQuery,
    AssetView,
    Deletion,
    Event,
    JobQuery,
    JobView,
    ReplicaState,
    ServiceStatus,
    Submission,
    TaskReport,
)
from serve.settings import Settings

POLL_S = 2.0  # short enough not to hold up a shutdown


class Dispatcher:
    async def __init__(self, settings: Settings, text_encoder: DeploymentHandle, denoiser: DeploymentHandle) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        logs.configure(settings.log_format)
        store = store_of(settings)
        self._jobs = Jobs(settings, RemoteBackend(text_encoder, denoiser), store, open_assets(settings))
        await self._jobs.open()
        self._webhooks = open_courier(settings, store)
        self._webhooks.open()
        self._outboxes = Outboxes(self._jobs)

    # --- from Gateways

    async def submit(self, submission: Submission, gateway_id: str, ticket: int) -> tuple[str, list[Event]]:
        """The Gateway watches the job from the start, unless it is an earlier one; one that has ended is told here."""
        job_id = await self._jobs.submit(submission)
        if job_id != submission.job_id:
            return job_id, []
        told = await self._jobs.told(job_id)
        if not told:
            await self.watch(job_id, gateway_id, ticket)
        return job_id, told

    async def watch(self, job_id: str, gateway_id: str, ticket: int) -> None:
        await self._outboxes.watch(job_id, gateway_id, ticket)

    async def poll(
        self, gateway_id: str, epoch: str, acknowledged: int, left: dict[str, int]
    ) -> tuple[str, int, list[Event]]:
        """A long poll, see Outboxes."""
        return await self._outboxes.poll(gateway_id, epoch, acknowledged, left, POLL_S)

    async def cancel(self, job_id: str) -> None:
        await self._jobs.cancel(job_id)

    async def get(self, job_id: str) -> JobView:
        return await self._jobs.get(job_id)

    async def find(self, query: JobQuery) -> list[JobView]:
        return await self._jobs.find(query)

    async def delete(self, job_id: str) -> JobView:
        return await self._jobs.delete(job_id)

    async def find_assets(self, query: AssetQuery) -> list[AssetView]:
        return await self._jobs.find_assets(query)

    async def delete_assets(self, user: str, ids: tuple[str, ...]) -> Deletion:
        return await self._jobs.delete_assets(user, ids)

    async def delete_all_assets(self, user: str, confirm: int | None) -> Deletion:
        return await self._jobs.delete_all_assets(user, confirm)

    async def status(self) -> ServiceStatus:
        return await self._jobs.status()

    # --- from Ray Serve

    async def check_health(self) -> None:
        """One that lost the store to another Dispatcher is replaced."""
        await self._jobs.check()

    # --- from GPU replicas

    async def heartbeat(self, state: ReplicaState) -> None:
        self._jobs.heartbeat(state)

    async def report(self, reports: list[TaskReport]) -> None:
        self._jobs.report(reports)
