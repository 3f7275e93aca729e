"""Handle-backed twins of serve's protocols; the only place that calls another deployment.

Every call runs in a context of its own: Ray Serve cancels calls made in a request's context when that request's
client leaves, and a job must outlive any one of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog
from grpc.aio import AioRpcError
from ray.exceptions import ActorDiedError, ObjectLostError, RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serve.access.keys import ApiKey
from serve.errors import NotFound, QueueFull, StaleWriter, Unavailable, ZImageError
from serve.jobs.fleet import ReplicaGone
from serve.jobs.standing import StandingRefusals
from serve.messages import (
    AssetQuery,
    AssetView,
    Deletion,
    Event,
    Generated,
    ImageRequest,
    JobQuery,
    JobView,
    Progress,
    Queued,
    ReplicaState,
    ServiceStats,
    ServiceStatus,
    Submission,
    Tally,
    Task,
    TaskReport,
    Terminal,
)
from serve.metrics.statistics import ModelStatistics
from serve.metrics.tally import Recorder
from serve.quota import Usage

log = structlog.get_logger()
T = TypeVar("T")

RETRY_EVERY_S = 0.2
GIVE_UP_S = 60.0
CANCEL_S = 5.0
KILLED = "killed by `ray.kill`"  # in Ray's error: what died by itself, or with its node, has another reason
KEEP_ENDED_S = 5.0  # for the caller, who is about to watch


def by_message(handle: DeploymentHandle) -> DeploymentHandle:
    """Answers come back in the message itself rather than through the object store: half the CPU for small ones."""
    return handle.options(_by_reference=False)


def detached(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


async def _outcome(response: DeploymentResponse) -> Any:
    """The answer, or the error that the other side raised rather than Ray's wrapping of it."""
    try:
        return await response
    except RayTaskError as error:
        if isinstance(error.cause, ZImageError):
            raise error.cause from None
        raise


@dataclass(frozen=True, slots=True)
class RemoteBackend:
    """The GPU replicas as the Dispatcher calls them. Embeddings go from one to the other without passing through it."""

    text_encoder: DeploymentHandle
    denoiser: DeploymentHandle

    def encode(self, request: ImageRequest) -> list[DeploymentResponse]:
        prompts = [request.prompt, request.negative_prompt] if request.guided else [request.prompt]
        return [self.text_encoder.encode.remote(prompt) for prompt in prompts]

    async def generate(self, task: Task, embeddings: object) -> Generated:
        assert isinstance(embeddings, list)
        response = self.denoiser.generate.remote(task, *embeddings)
        try:
            generated: Generated = await _outcome(response)
        except asyncio.CancelledError:
            await self._stop(response)
            raise
        except RayActorError as error:
            dead = isinstance(error, ActorDiedError)
            raise ReplicaGone(task.replica_id, killed=KILLED in str(error), dead=dead) from error
        except (TaskCancelledError, RayServeException, RayError) as error:
            if isinstance(error, RayTaskError) and not _upstream_died(error):
                raise
            raise ReplicaGone(None) from error
        return generated

    @staticmethod
    async def _stop(response: DeploymentResponse) -> None:
        """Cancels a call and waits until the replica has let go of it."""
        response.cancel()
        with suppress(RayError, RayServeException, asyncio.CancelledError, TimeoutError, ZImageError):
            await asyncio.wait_for(_outcome(response), CANCEL_S)


def _upstream_died(error: RayTaskError) -> bool:
    """Or the node that kept what it had answered."""
    return isinstance(error.cause, RayActorError | ObjectLostError)


@dataclass(slots=True)
class RemoteDispatcher:
    """The Dispatcher as a GPU replica calls it."""

    handle: DeploymentHandle

    async def heartbeat(self, state: ReplicaState, tally: Tally | None) -> None:
        await _outcome(self.handle.heartbeat.remote(state, tally))

    async def leave(self, replica_id: str) -> None:
        await _outcome(self.handle.leave.remote(replica_id))

    async def report(self, reports: list[TaskReport]) -> None:
        await _outcome(self.handle.report.remote(reports))


@dataclass(slots=True)
class _Mailbox:
    """What one job has sent to this Gateway, of positions and progress the newest. `ticket` numbers its watch."""

    ticket: int
    queues: set[asyncio.Queue[Event | ZImageError]] = field(default_factory=set)
    log: list[Event] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.log) and isinstance(self.log[-1], Terminal)

    def put(self, event: Event) -> None:
        """News twice told, after the Dispatcher was replaced, are one."""
        if self.log and event.seq <= self.log[-1].seq:
            return
        if isinstance(event, Queued | Progress):
            self.log = [old for old in self.log if type(old) is not type(event)]
        self.log.append(event)
        for mail in self.queues:
            mail.put_nowait(event)


class RemoteService:
    """ImageService over one link: a single long poll brings the events of all jobs that this Gateway watches."""

    def __init__(self, dispatcher: DeploymentHandle, gateway_id: str) -> None:
        self.recorder = Recorder()
        self._dispatcher = by_message(dispatcher)
        self._gateway_id = gateway_id
        self._mailboxes: dict[str, _Mailbox] = {}
        self._tickets = itertools.count(1)
        self._left: dict[str, int] = {}
        self._refusals = StandingRefusals()
        self._epoch = ""
        self._announced = 0
        self._on_config: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._link: asyncio.Task[None] | None = None
        self._closed = False

    def open(self, on_config: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """`on_config` is called when some process was told that hot files have changed."""
        self._on_config = on_config
        self._link = detached(self._follow())

    def close(self) -> None:
        self._closed = True
        if self._link is not None:
            self._link.cancel()

    async def submit(self, submission: Submission) -> str:
        self._check_room(submission)
        mailbox = self._open_mailbox(submission.job_id)
        send = partial(self._dispatcher.submit.remote, submission, self._gateway_id, mailbox.ticket)
        job_id: str | None = None
        try:
            job_id, told = await self._call(send)
            for event in told:
                mailbox.put(event)
            if mailbox.ended:
                asyncio.get_running_loop().call_later(KEEP_ENDED_S, self._tidy, submission.job_id, mailbox)
        except QueueFull as refusal:
            self._refusals.heard(refusal, submission)
            raise
        finally:
            if job_id != submission.job_id:
                self._close_mailbox(submission.job_id)
        assert job_id is not None
        return job_id

    def _check_room(self, submission: Submission) -> None:
        """Raises QueueFull where the Dispatcher has just said so: it need not hear of each one, only of how many."""
        try:
            self._refusals.check(submission)
        except QueueFull as refusal:
            self.recorder.count("zimage_refusals_total", submission.request.model, refusal.code)
            raise

    async def watch(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        mail: asyncio.Queue[Event | ZImageError] = asyncio.Queue()
        mailbox = self._mailboxes.get(job_id) or await self._subscribe(job_id)
        for event in mailbox.log:
            if event.seq > after:
                mail.put_nowait(event)
        mailbox.queues.add(mail)
        try:
            while not (mailbox.ended and mail.empty()):
                item = await mail.get()
                if isinstance(item, ZImageError):
                    raise item
                yield item
                if isinstance(item, Terminal):
                    return
        finally:
            mailbox.queues.discard(mail)
            if not mailbox.queues and self._mailboxes.get(job_id) is mailbox:
                self._close_mailbox(job_id)

    async def cancel(self, job_id: str) -> None:
        await self._call(lambda: self._dispatcher.cancel.remote(job_id))

    async def get(self, job_id: str) -> JobView:
        view: JobView = await self._call(lambda: self._dispatcher.get.remote(job_id))
        return view

    async def find(self, query: JobQuery) -> list[JobView]:
        views: list[JobView] = await self._call(lambda: self._dispatcher.find.remote(query))
        return views

    async def delete(self, job_id: str) -> JobView:
        view: JobView = await self._call(lambda: self._dispatcher.delete.remote(job_id))
        return view

    async def find_assets(self, query: AssetQuery) -> list[AssetView]:
        views: list[AssetView] = await self._call(lambda: self._dispatcher.find_assets.remote(query))
        return views

    async def delete_assets(self, user: str | None, ids: tuple[str, ...]) -> Deletion:
        deletion: Deletion = await self._call(lambda: self._dispatcher.delete_assets.remote(user, ids))
        return deletion

    async def delete_all_assets(self, user: str, confirm: int | None) -> Deletion:
        deletion: Deletion = await self._call(lambda: self._dispatcher.delete_all_assets.remote(user, confirm))
        return deletion

    async def status(self) -> ServiceStatus:
        status: ServiceStatus = await self._call(self._dispatcher.status.remote)
        return status

    async def usage(self, user: str) -> Usage:
        usage: Usage = await self._call(lambda: self._dispatcher.usage.remote(user))
        return usage

    async def api_keys(self) -> list[ApiKey]:
        keys: list[ApiKey] = await self._call(self._dispatcher.api_keys.remote)
        return keys

    async def add_api_key(self, key: ApiKey) -> None:
        await self._call(lambda: self._dispatcher.add_api_key.remote(key))

    async def revoke_api_key(self, key_id: str) -> ApiKey:
        key: ApiKey = await self._call(lambda: self._dispatcher.revoke_api_key.remote(key_id))
        return key

    async def stats(self) -> ServiceStats:
        stats: ServiceStats = await self._call(self._dispatcher.stats.remote)
        return stats

    async def active(self, limit: int) -> list[JobView]:
        views: list[JobView] = await self._call(lambda: self._dispatcher.active.remote(limit))
        return views

    async def hold(self, paused: bool) -> None:
        await self._call(lambda: self._dispatcher.hold.remote(paused))

    async def statistics(self) -> dict[str, ModelStatistics]:
        statistics: dict[str, ModelStatistics] = await self._call(self._dispatcher.statistics.remote)
        return statistics

    async def metrics(self) -> str:
        tally = self.recorder.drain()
        text: str = await self._call(lambda: self._dispatcher.metrics.remote(self._gateway_id, tally))
        return text

    async def announce_config(self) -> None:
        """Every Gateway, this one too, looks at its hot files."""
        await self._call(self._dispatcher.announce_config.remote)

    def _look_at_config(self) -> None:
        if self._on_config is not None:
            detached(self._on_config())

    async def _subscribe(self, job_id: str) -> _Mailbox:
        mailbox = self._open_mailbox(job_id)
        try:
            await self._call(lambda: self._dispatcher.watch.remote(job_id, self._gateway_id, mailbox.ticket))
        except ZImageError as error:
            self._mailboxes.pop(job_id, None)
            for mail in mailbox.queues:  # of those who came meanwhile
                mail.put_nowait(error)
            raise
        except asyncio.CancelledError:
            if not mailbox.queues and self._mailboxes.get(job_id) is mailbox:
                self._close_mailbox(job_id)
            raise
        return mailbox

    def _open_mailbox(self, job_id: str) -> _Mailbox:
        self._mailboxes[job_id] = _Mailbox(next(self._tickets))
        return self._mailboxes[job_id]

    def _close_mailbox(self, job_id: str) -> None:
        """The Dispatcher hears of it with the next poll: no message of its own for every watcher that leaves."""
        mailbox = self._mailboxes.pop(job_id, None)
        if mailbox is not None and not mailbox.ended:
            self._left[job_id] = mailbox.ticket

    async def _call(self, send: Callable[[], DeploymentResponse]) -> Any:
        """Again until answered, while the Dispatcher is replaced; its calls are idempotent."""
        return await asyncio.shield(detached(self._insist(send)))

    @staticmethod
    async def _insist(send: Callable[[], DeploymentResponse]) -> Any:
        give_up = asyncio.get_running_loop().time() + GIVE_UP_S
        while True:
            try:
                return await _outcome(send())
            except (RayActorError, AioRpcError, StaleWriter):
                if asyncio.get_running_loop().time() > give_up:
                    raise Unavailable("the queue is not answering", hint="try again", retry_after=5) from None
                await asyncio.sleep(RETRY_EVERY_S)

    async def _follow(self) -> None:
        acknowledged = 0
        while not self._closed:  # a cancelled call ends as Ray's error, not as a CancelledError
            left, tally = dict(self._left), self.recorder.next()
            poll = self._dispatcher.poll.remote(self._gateway_id, self._epoch, acknowledged, left, tally)
            try:
                answer = await _outcome(poll)
            except (RayError, RayServeException, AioRpcError):
                await asyncio.sleep(RETRY_EVERY_S)
                continue
            self.recorder.arrived(tally)
            epoch, acknowledged, events, announced = answer
            self._left = {job_id: ticket for job_id, ticket in self._left.items() if left.get(job_id) != ticket}
            if (epoch, announced) != (self._epoch, self._announced):
                self._announced = announced
                self._look_at_config()
            if epoch != self._epoch:
                await self._rejoin(epoch)
            for event in events:
                self._deliver(event)

    def _deliver(self, event: Event) -> None:
        mailbox = self._mailboxes.get(event.job_id)
        if mailbox is not None:
            mailbox.put(event)
            self._tidy(event.job_id, mailbox)

    def _tidy(self, job_id: str, mailbox: _Mailbox) -> None:
        """Who asks later for a job that has ended is told by the Dispatcher."""
        if mailbox.ended and not mailbox.queues and self._mailboxes.get(job_id) is mailbox:
            del self._mailboxes[job_id]

    async def _rejoin(self, epoch: str) -> None:
        """A new Dispatcher knows all jobs, but nothing of this Gateway's watchers."""
        before, self._epoch = self._epoch, epoch
        if not before:
            return
        log.warning("the dispatcher was replaced", jobs=len(self._mailboxes))
        for job_id, mailbox in list(self._mailboxes.items()):
            detached(self._watch_again(job_id, mailbox))

    async def _watch_again(self, job_id: str, mailbox: _Mailbox) -> None:
        try:
            await self._insist(lambda: self._dispatcher.watch.remote(job_id, self._gateway_id, mailbox.ticket))
        except (NotFound, Unavailable) as error:
            for mail in mailbox.queues:
                mail.put_nowait(error)
