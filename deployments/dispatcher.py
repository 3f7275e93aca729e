"""The process that owns the queue. Exactly one replica; it never touches pixels or tensors."""

from __future__ import annotations

import secrets

from ray.serve.handle import DeploymentHandle

from deployments.remote import RemoteBackend
from serve import logs
from serve.jobs.dispatcher import Dispatcher as Jobs
from serve.jobs.outbox import Outbox
from serve.jobs.store import store_of
from serve.messages import Event, JobQuery, JobView, ReplicaState, ServiceStats, ServiceStatus, Submission, TaskReport
from serve.settings import Settings

POLL_S = 2.0  # short enough not to hold up a shutdown


class Dispatcher:
    async def __init__(self, settings: Settings, text_encoder: DeploymentHandle, denoiser: DeploymentHandle) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        logs.configure(settings.log_format)
        self._jobs = Jobs(settings, RemoteBackend(text_encoder, denoiser), store_of(settings))
        await self._jobs.open()
        self._epoch = secrets.token_hex(8)
        self._outboxes: dict[str, Outbox] = {}
        self._announced = 0

    # --- from Gateways

    async def submit(self, submission: Submission, gateway_id: str) -> str:
        """The Gateway watches the job from the start, unless it is an earlier one."""
        job_id = await self._jobs.submit(submission)
        if job_id == submission.job_id:
            await self.watch(job_id, gateway_id)
        return job_id

    async def watch(self, job_id: str, gateway_id: str) -> None:
        await self._jobs.listen(job_id, self._outbox(gateway_id).put, after=0)

    async def poll(self, gateway_id: str, acknowledged: int) -> tuple[str, int, list[Event], int]:
        """A long poll: the Dispatcher's epoch, the new cursor, the events since the acknowledged one, and how often
        hot files were announced: a Gateway that sees another number looks at its own."""
        cursor, events = await self._outbox(gateway_id).take(acknowledged, POLL_S)
        return self._epoch, cursor, events, self._announced

    async def announce_config(self) -> None:
        self._announced += 1
        for outbox in self._outboxes.values():
            outbox.wake()

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

    async def stats(self) -> ServiceStats:
        return await self._jobs.stats()

    async def active(self, limit: int) -> list[JobView]:
        return await self._jobs.active(limit)

    async def hold(self, paused: bool) -> None:
        await self._jobs.hold(paused)

    # --- from Ray Serve

    async def check_health(self) -> None:
        """One that lost the store to another Dispatcher is replaced."""
        await self._jobs.check()

    # --- from GPU replicas

    async def heartbeat(self, state: ReplicaState) -> None:
        self._jobs.heartbeat(state)

    async def report(self, reports: list[TaskReport]) -> None:
        self._jobs.report(reports)

    def _outbox(self, gateway_id: str) -> Outbox:
        return self._outboxes.setdefault(gateway_id, Outbox())
