"""The process that owns the queue. Exactly one replica; it never touches pixels or tensors."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog
from ray.serve.handle import DeploymentHandle

from deployments import nodes
from deployments.host import bound_host
from deployments.remote import RemoteBackend
from deployments.replica import process_name
from deployments.roster import ROSTER
from serve import logs
from serve.access.keys import ApiKey
from serve.api.webhooks import open_courier
from serve.assets.open import open_assets
from serve.jobs.backends import Backends
from serve.jobs.backlog import told
from serve.jobs.dispatcher import Dispatcher as Jobs
from serve.jobs.outboxes import Outboxes
from serve.jobs.pool import homes
from serve.jobs.store import store_of
from serve.messages import (
    AssetQuery,
    AssetView,
    Deletion,
    Event,
    JobQuery,
    JobView,
    Phase,
    ReplicaState,
    ServiceStats,
    ServiceStatus,
    Submission,
    Tally,
    TaskReport,
)
from serve.metrics.statistics import ModelStatistics
from serve.quota import Usage
from serve.settings import Settings

log = structlog.get_logger()
POLL_S = 2.0  # short enough not to hold up a shutdown
GATEWAYS_TELL_S = 2.0  # one that does not poll within this time has died, or has nothing to do with its time


class Dispatcher:
    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        settings: Settings,
        text_encoders: dict[str, DeploymentHandle],
        denoisers: dict[str, DeploymentHandle],
        node: str | None = None,
    ) -> None:
        nodes.stay(node)
        self._node = node
        self._pace = settings.autoscaling
        self._beat_s = settings.timeouts.heartbeat_s
        self._warnings: tuple[str, ...] = ()
        logs.configure(settings.log_format, process_name())
        store = store_of(settings)
        backends = {
            name: RemoteBackend(text_encoders[model], denoisers[model]) for name, model in homes(settings).items()
        }
        self._jobs = Jobs(settings, Backends(backends), store, open_assets(settings))
        self._session = nodes.session()
        if self._session:
            self._loop = asyncio.get_running_loop()
            ROSTER.gone = self._gone
            for handle in denoisers.values():
                handle.options()  # its router begins to listen to Ray Serve, and not with the first call
        await self._jobs.open(self._session)
        await self._jobs.check_way_in(await bound_host())
        self._webhooks = open_courier(settings, store, self._jobs.accounting.webhook)
        self._webhooks.open()
        self._outboxes = Outboxes(self._jobs)
        self._announced = 0

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
        self, gateway_id: str, epoch: str, acknowledged: int, left: dict[str, int], tally: Tally | None
    ) -> tuple[str, int, list[Event], int]:
        """A long poll, see Outboxes. Last, how often hot files were announced: at another number a Gateway looks."""
        self._jobs.counted(gateway_id, tally)
        return *await self._outboxes.poll(gateway_id, epoch, acknowledged, left, POLL_S), self._announced

    async def statistics(self) -> dict[str, ModelStatistics]:
        return await self._jobs.statistics()

    async def metrics(self, gateway_id: str, tally: Tally | None) -> str:
        """With what this Gateway has counted until now, and all others."""
        self._jobs.counted(gateway_id, tally)
        await self._outboxes.polled_again(without=gateway_id, timeout=GATEWAYS_TELL_S)
        return await self._jobs.metrics()

    async def announce_config(self) -> None:
        self._announced += 1
        self._outboxes.wake()

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

    async def delete_assets(self, user: str | None, ids: tuple[str, ...]) -> Deletion:
        return await self._jobs.delete_assets(user, ids)

    async def delete_all_assets(self, user: str, confirm: int | None) -> Deletion:
        return await self._jobs.delete_all_assets(user, confirm)

    async def status(self) -> ServiceStatus:
        return replace(await self._jobs.status(), warnings=self._warnings)

    async def usage(self, user: str) -> Usage:
        return await self._jobs.usage(user)

    async def api_keys(self) -> list[ApiKey]:
        return await self._jobs.api_keys()

    async def add_api_key(self, key: ApiKey) -> None:
        await self._jobs.add_api_key(key)

    async def revoke_api_key(self, key_id: str) -> ApiKey:
        return await self._jobs.revoke_api_key(key_id)

    async def stats(self) -> ServiceStats:
        return await self._jobs.stats()

    async def active(self, limit: int) -> list[JobView]:
        return await self._jobs.active(limit)

    async def hold(self, paused: bool) -> None:
        await self._jobs.hold(paused)

    # --- from Ray Serve

    async def __del__(self) -> None:
        """Called by Ray Serve when it replaces or ends this replica without haste."""
        await self._jobs.close()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What deployments/autoscaling.py goes by."""
        numbers = {"drain_s": self._pace.drain_s, "quiet_s": self._pace.quiet_s}
        for role, demand in self._jobs.demand().items():
            numbers |= told(role, demand)
        return numbers

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

    async def heartbeat(self, state: ReplicaState, tally: Tally | None = None) -> None:
        """One that has just started is answered when it is listed, or when its next heartbeat is due."""
        self._jobs.counted(state.replica_id, tally)
        judged = ROSTER.judge(state) if self._session else state
        self._jobs.heartbeat(judged)
        starting = (state.phase, judged.phase) == (Phase.READY, Phase.WARMING_UP)
        if starting and await ROSTER.listing(state.replica_id, self._beat_s):
            self._jobs.heartbeat(state)

    def _gone(self, replica_id: str, dead: bool) -> None:
        """Called in a router's thread."""
        told = self._jobs.give_up if dead else self._jobs.withdraw
        self._loop.call_soon_threadsafe(told, replica_id)

    async def leave(self, replica_id: str) -> None:
        """The last word of a replica that is stopped on purpose."""
        self._jobs.leave(replica_id)

    async def report(self, reports: list[TaskReport]) -> None:
        self._jobs.report(reports)
