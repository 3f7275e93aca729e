"""The process that owns the queue. Exactly one replica; it never touches pixels or tensors."""

from __future__ import annotations

from ray.serve.handle import DeploymentHandle

from deployments.remote import RemoteBackend
from serve import logs
from serve.api.webhooks import open_courier
from serve.jobs.dispatcher import Dispatcher as Jobs
from serve.jobs.outboxes import Outboxes
from serve.jobs.store import store_of
from serve.messages import Event, JobQuery, JobView, ReplicaState, ServiceStatus, Submission, TaskReport
from serve.settings import Settings

POLL_S = 2.0  # short enough not to hold up a shutdown


class Dispatcher:
    async def __init__(self, settings: Settings, text_encoder: DeploymentHandle, denoiser: DeploymentHandle) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        logs.configure(settings.log_format)
        store = store_of(settings)
        self._jobs = Jobs(settings, RemoteBackend(text_encoder, denoiser), store)
        await self._jobs.open()
        self._webhooks = open_courier(settings, store)
        self._webhooks.open()
        self._outboxes = Outboxes(self._jobs)

    # --- from Gateways

    async def submit(self, submission: Submission, gateway_id: str, ticket: int) -> str:
        """The Gateway watches the job from the start, unless it is an earlier one."""
        job_id = await self._jobs.submit(submission)
        if job_id == submission.job_id:
            await self.watch(job_id, gateway_id, ticket)
        return job_id

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
