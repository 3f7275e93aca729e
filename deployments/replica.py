"""What every GPU replica does beside its work: say how far it is, that it lives, and what its tasks have done."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog
from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments import nodes
from deployments.remote import RemoteDispatcher, by_message, detached
from serve import logs
from serve.messages import Phase, ReplicaState, TaskPreview, TaskReport, TaskStepped
from serve.metrics.tally import Recorder
from serve.settings import Settings

log = structlog.get_logger()
REPORT_EVERY_S = 0.25
LEAVE_S = 2.0
GIVEN_UP = 1  # the exit code; nobody is left who would hear more


def replica_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


def process_name() -> str:
    """As log lines call it."""
    replica = serve.get_replica_context().replica_id
    return f"{replica.deployment_id.name}/{replica.unique_id}"


def dispatcher_handle() -> DeploymentHandle:
    return by_message(serve.get_deployment_handle("Dispatcher", serve.get_replica_context().app_name))


class Membership:
    """A replica's link to the Dispatcher. Reports are coalesced to four messages a second over all its tasks."""

    def __init__(self, settings: Settings, state: ReplicaState) -> None:
        logs.configure(settings.log_format, process_name())
        self._dispatcher = RemoteDispatcher(dispatcher_handle())
        self.recorder = Recorder()
        self._born = time.monotonic()
        self._every_s = settings.timeouts.heartbeat_s
        self._state = state
        self._refresh: Callable[[ReplicaState], ReplicaState] = lambda state: state
        self._reports: list[TaskReport] = []
        self._sending = False
        self._delivery = asyncio.Lock()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._beating = detached(self._beat())
        self._watching = detached(self._watch())

    def progress(self, phase: Phase, fraction: float = 0.0) -> None:
        """May be called from any thread."""
        self._state = replace(self._state, phase=phase, fraction=fraction)
        self._loop.call_soon_threadsafe(self._changed.set)

    def ready(self, state: ReplicaState, refresh: Callable[[ReplicaState], ReplicaState]) -> None:
        """From now on every heartbeat carries `refresh(state)`."""
        warmup_s = time.monotonic() - self._born
        self._state = replace(state, phase=Phase.READY, fraction=1.0, warmup_s=warmup_s)
        self._refresh = refresh
        self._changed.set()

    def lost(self) -> None:
        """Whatever it still says: nothing is to be expected of it, and its end is none that was planned."""
        state = replace(self._state, phase=Phase.LOST)
        self._state, self._refresh = state, lambda _: state
        self._changed.set()

    async def leave(self) -> None:
        """When it has been stopped on purpose, and nothing is left to do. A Dispatcher that is gone need not know."""
        self._beating.cancel()
        self._watching.cancel()
        with suppress(RayError, RayServeException, AioRpcError, TimeoutError):
            await asyncio.wait_for(self._dispatcher.leave(self._state.replica_id), LEAVE_S)

    def report(self, report: TaskReport) -> None:
        """Of a task's steps only the newest waits to be sent; a preview, which somebody wants to see, never waits."""
        self._reports = [old for old in self._reports if not _outdated(old, report)] + [report]
        if isinstance(report, TaskPreview):
            detached(self.flush())
        elif not self._sending:
            self._sending = True
            detached(self._send())

    async def flush(self) -> None:
        """Returns when everything reported until now was delivered, in order, or could not be."""
        async with self._delivery:
            reports, self._reports = self._reports, []
            if not reports:
                return
            try:
                await self._dispatcher.report(reports)
            except (RayError, RayServeException, AioRpcError) as error:
                log.warning("progress was not delivered", error=type(error).__name__, reports=len(reports))

    def settle(self, task_id: str) -> None:
        """The task's answer is on its way and says more than its steps that still wait to be reported."""
        self._reports = [report for report in self._reports if report.task_id != task_id]

    async def _send(self) -> None:
        while self._reports:
            await asyncio.sleep(REPORT_EVERY_S)
            await self.flush()
        self._sending = False

    async def _watch(self) -> None:
        """Ends this process when Ray has given its node up: nobody gives it work, and another has taken its place."""
        while not await asyncio.to_thread(nodes.given_up):
            await asyncio.sleep(self._every_s)
        log.error("Ray has declared this node dead, and this replica, which lives on, ends itself")
        os._exit(GIVEN_UP)

    async def _beat(self) -> None:
        while True:
            self._changed.clear()
            try:
                tally = self.recorder.next()
                await self._dispatcher.heartbeat(self._refresh(self._state), tally)
                self.recorder.arrived(tally)
            except (RayError, RayServeException, AioRpcError) as error:
                log.warning("the dispatcher did not take a heartbeat", error=type(error).__name__)
            try:
                await asyncio.wait_for(self._changed.wait(), self._every_s)
            except TimeoutError:
                continue


def _outdated(old: TaskReport, new: TaskReport) -> bool:
    return isinstance(old, TaskStepped) and isinstance(new, TaskStepped) and old.task_id == new.task_id
