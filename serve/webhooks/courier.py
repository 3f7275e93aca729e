"""Sends webhooks when they are due, a few at a time and fewer to one host, until they arrive or are given up."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from serve.errors import StaleWriter, Unavailable
from serve.jobs.deliveries import host_of
from serve.jobs.job import Job
from serve.jobs.store import JobStore
from serve.messages import Delivery, JobView
from serve.settings import WebhookSettings
from serve.webhooks.retries import Answer, after
from serve.webhooks.sender import Sender
from serve.webhooks.signing import Keys

log = structlog.get_logger()

LOOK_AGAIN_S = 5.0  # after the store did not answer
LOOK_AT_LEAST_S = 60.0

Render = Callable[[JobView], str]


class Courier:
    """Beside the Dispatcher, over the same open store, which holds what is to be sent; here is what is on its way.

    At least once: who dies between an answer and its commit sends again, under the same `webhook-id`.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        store: JobStore,
        keys: Keys,
        sender: Sender,
        render: Render,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`count` is told the outcome of each attempt: delivered, pending, failed."""
        self._settings = settings
        self._count = count
        self._store = store
        self._keys = keys
        self._sender = sender
        self._render = render
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()
        self._running: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    @property
    def stopped(self) -> bool:
        """Another Dispatcher sends now."""
        return self._running is not None and self._running.done()

    async def close(self) -> None:
        """What is on its way is sent again by the next one."""
        tasks = [task for task in (self._running, *self._sending.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sender.close()

    async def _run(self) -> None:
        changed = self._store.deliveries.changed
        while True:
            changed.clear()
            try:
                await self._send_due()
                soonest = await self._store.deliveries.next_due(time.time())
                wait = LOOK_AT_LEAST_S if soonest is None else min(LOOK_AT_LEAST_S, max(0.0, soonest - time.time()))
            except Unavailable as error:
                log.error("webhooks wait for the job store", reason=error.message)
                wait = LOOK_AGAIN_S
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), wait)

    async def _send_due(self) -> None:
        while (free := self._settings.concurrency - len(self._sending)) > 0:
            most = self._settings.concurrency_per_host
            busy = [host for host, count in self._hosts.items() if count >= most]
            due = await self._store.deliveries.due(time.time(), limit=free, without=list(self._sending), hosts=busy)
            if not due:
                return
            for delivery in due:
                if self._hosts[host_of(delivery.url)] < most:
                    self._start(delivery)

    def _start(self, delivery: Delivery) -> None:
        host = host_of(delivery.url)
        self._hosts[host] += 1
        task = asyncio.get_running_loop().create_task(self._deliver(delivery), context=contextvars.Context())
        self._sending[delivery.job_id] = task
        task.add_done_callback(lambda _: self._finished(delivery.job_id, host))

    def _finished(self, job_id: str, host: str) -> None:
        task = self._sending.pop(job_id)
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        if not task.cancelled() and isinstance(task.exception(), StaleWriter) and self._running is not None:
            self._running.cancel()  # another Dispatcher sends them now
        self._store.deliveries.changed.set()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            answer = await self._attempt(delivery)
        except Exception as error:  # ours; it waits like any other failure, or it would be tried without a pause
            log.error("a webhook could not be made", job_id=delivery.job_id, exc_info=error)
            answer = Answer(error="the server failed on it")
        if answer is not None:
            tried = after(delivery, answer, self._settings.retry_s, time.time())
            _tell(tried)
            self._count(tried.status)
            await self._store.deliveries.save(tried)

    async def _attempt(self, delivery: Delivery) -> Answer | None:
        """None when the job was deleted meanwhile."""
        record = await self._store.get(delivery.job_id)
        if record is None:
            return None
        body = self._render(replace(Job.restored(record).view(), webhook=delivery))
        headers = self._keys.headers(record.submission.user, f"msg_{delivery.job_id}", time.time(), body)
        headers |= {"Content-Type": "application/json", "User-Agent": "zimage-webhooks/1"}
        return await self._sender.post(delivery.url, headers, body.encode())


def _tell(tried: Delivery) -> None:
    """Without the path and query of the URL, which may hold secrets."""
    said = {"job_id": tried.job_id, "host": host_of(tried.url), "attempts": tried.attempts, "reason": tried.last_error}
    if tried.status == "failed":
        log.error("a webhook is given up", **said)
    elif tried.status == "pending":
        log.warning("a webhook is tried again", in_s=round((tried.next_attempt_at or 0.0) - time.time()), **said)
