"""The process that owns the queue. Exactly one replica; it never touches pixels or tensors."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import structlog
from ray.serve.handle import DeploymentHandle

from deployments import nodes
from deployments.remote import RemoteBackend
from serve import logs
from serve.assets.store import LocalAssets
from serve.jobs.dispatcher import Dispatcher as Jobs
from serve.jobs.outbox import Outbox
from serve.jobs.store import store_of
from serve.messages import Event, JobQuery, JobView, ReplicaState, ServiceStatus, Submission, TaskReport
from serve.settings import Settings

log = structlog.get_logger()
POLL_S = 2.0  # short enough not to hold up a shutdown


class Dispatcher:
    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: Settings, text_encoder: DeploymentHandle, denoiser: DeploymentHandle, node: str | None = None
    ) -> None:
        nodes.stay(node)
        self._node = node
        self._warnings: tuple[str, ...] = ()
        logs.configure(settings.log_format)
        backend, assets = RemoteBackend(text_encoder, denoiser), LocalAssets(settings.data / "assets")
        self._jobs = Jobs(settings, backend, store_of(settings), assets)
        await self._jobs.open()
        self._epoch = secrets.token_hex(8)
        self._outboxes: dict[str, Outbox] = {}

    # --- from Gateways

    async def submit(self, submission: Submission, gateway_id: str) -> str:
        """The Gateway watches the job from the start, unless it is an earlier one."""
        job_id = await self._jobs.submit(submission)
        if job_id == submission.job_id:
            await self.watch(job_id, gateway_id)
        return job_id

    async def watch(self, job_id: str, gateway_id: str) -> None:
        await self._jobs.listen(job_id, self._outbox(gateway_id).put, after=0)

    async def poll(self, gateway_id: str, acknowledged: int) -> tuple[str, int, list[Event]]:
        """A long poll: the Dispatcher's epoch, the new cursor, and the events since the acknowledged one."""
        cursor, events = await self._outbox(gateway_id).take(acknowledged, POLL_S)
        return self._epoch, cursor, events

    async def cancel(self, job_id: str) -> None:
        await self._jobs.cancel(job_id)

    async def get(self, job_id: str) -> JobView:
        return await self._jobs.get(job_id)

    async def find(self, query: JobQuery) -> list[JobView]:
        return await self._jobs.find(query)

    async def delete(self, job_id: str) -> JobView:
        return await self._jobs.delete(job_id)

    async def status(self) -> ServiceStatus:
        return replace(await self._jobs.status(), warnings=self._warnings)

    # --- from Ray Serve

    async def __del__(self) -> None:
        """Called by Ray Serve when it replaces or ends this replica without haste."""
        await self._jobs.close()

    async def hand_back(self) -> None:
        """Before everything is stopped at once: jobs that then lose their replica are not to blame."""
        await self._jobs.hand_back()

    async def check_health(self) -> None:
        """One that lost the store to another Dispatcher is replaced."""
        await self._jobs.check()
        warnings = await asyncio.to_thread(nodes.warnings, self._node)
        for warning in set(warnings) - set(self._warnings):
            log.error(warning)
        self._warnings = warnings

    # --- from GPU replicas

    async def heartbeat(self, state: ReplicaState) -> None:
        self._jobs.heartbeat(state)

    async def report(self, reports: list[TaskReport]) -> None:
        self._jobs.report(reports)

    def _outbox(self, gateway_id: str) -> Outbox:
        return self._outboxes.setdefault(gateway_id, Outbox())
