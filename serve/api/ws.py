"""The events of many jobs over one WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, WebSocket
from pydantic import Field
from starlette.websockets import WebSocketDisconnect

from serve.api.body import parse_object
from serve.api.deps import Door, TheDoor
from serve.api.errors import error_body
from serve.api.events import event_json, states
from serve.api.generation import Body, parse
from serve.api.jobs import ACTIVE, MAX_PAGE
from serve.api.origin import same_site
from serve.errors import InvalidRequest, ZImageError
from serve.messages import Event, JobQuery, JobView

MAX_FOLLOWED = 1000
MAX_MESSAGE = 64 * 1024  # bytes; 200 ids need 6,000
MAX_UNSENT = 256
LOOK_EVERY_S = 1.0
LOOK_BACK_S = 5.0  # between the clocks of a Gateway and the Dispatcher
TRY_AGAIN_LATER = 1013
POLICY_VIOLATION = 1008
CLOSE_S = 10.0

router = APIRouter(prefix="/v1")

Unsent = tuple[JobView, JobView | Event] | dict[str, Any]


class Message(Body):
    """What a client may say."""

    type: Literal["subscribe", "unsubscribe"] = Field(description='"subscribe" or "unsubscribe"')
    jobs: Literal["mine"] | Annotated[list[str], Field(max_length=MAX_PAGE)] = Field(
        description=f'"mine" for all jobs of yours, later ones too, or a list of up to {MAX_PAGE} ids'
    )


class SlowReader(Exception):
    """More waits to be sent than is kept for one client."""


@router.websocket("/ws")
async def watch_jobs(websocket: WebSocket, door: TheDoor) -> None:
    if not same_site(websocket, door):
        await websocket.close(POLICY_VIOLATION)  # before it is accepted: the browser sees a 403
        return
    await websocket.accept()
    try:
        await _Socket(websocket, door).run()
    except* WebSocketDisconnect:
        pass
    except* SlowReader:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):  # the reason waits its turn behind what is not read
                await websocket.close(TRY_AGAIN_LATER, f"{MAX_UNSENT} events wait to be read; subscribe again")


class _Socket:
    """One client: what it follows, and what is to be sent to it. Events are rendered when their turn has come."""

    def __init__(self, websocket: WebSocket, door: Door) -> None:
        self._websocket = websocket
        self._door = door
        limits = door.settings.limits
        self._limits = limits.model_copy(update={"body_bytes": min(MAX_MESSAGE, limits.body_bytes)})
        self._unsent: asyncio.Queue[Unsent] = asyncio.Queue(MAX_UNSENT)
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._by_id: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Ends by an exception: the client's leaving, or its slowness."""
        async with self._tasks:
            self._tasks.create_task(self._send())
            self._tasks.create_task(self._receive())

    async def _send(self) -> None:
        base = self._door.base_url(self._websocket)
        while True:
            unsent = await self._unsent.get()
            shown = unsent if isinstance(unsent, dict) else await event_json(self._door, base, *unsent)
            if shown is not None:
                await self._websocket.send_json(shown)

    async def _receive(self) -> None:
        while True:
            frame = await self._websocket.receive()
            if frame["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(frame["code"])
            data = frame.get("bytes") or (frame.get("text") or "").encode()
            try:
                message, _ = parse(Message, parse_object(data, self._limits))
                self._obey(message)
            except ZImageError as error:
                self._put({"type": "error", "error": error_body(self._websocket, error)})

    def _obey(self, message: Message) -> None:
        if message.type == "subscribe":
            self._subscribe(message.jobs)
        else:
            self._unsubscribe(message.jobs)
            self._put({"type": "unsubscribed", "jobs": message.jobs})

    def _subscribe(self, jobs: Literal["mine"] | list[str]) -> None:
        if jobs == "mine":
            if self._looking is not None:
                self._looking.cancel()
            self._looking = self._tasks.create_task(self._look_for_mine())
            return
        if len(self._followed.keys() | set(jobs)) > MAX_FOLLOWED:
            hint = 'unsubscribe from some, or subscribe to "mine"'
            raise InvalidRequest(f"more than {MAX_FOLLOWED} jobs on one connection", param="jobs", hint=hint)
        self._by_id.update(jobs)
        self._put({"type": "subscribed", "jobs": jobs})
        for job_id in jobs:
            self._follow(job_id)

    def _unsubscribe(self, jobs: Literal["mine"] | list[str]) -> None:
        if jobs != "mine":
            self._by_id.difference_update(jobs)
            dropped = set(jobs)
        else:
            if self._looking is not None:
                self._looking.cancel()
                self._looking = None
            dropped = self._followed.keys() - self._by_id
        for job_id in dropped & self._followed.keys():
            self._followed.pop(job_id).cancel()

    def _follow(self, job_id: str) -> None:
        if job_id not in self._followed:
            self._followed[job_id] = self._tasks.create_task(self._pass_on(job_id))

    async def _pass_on(self, job_id: str) -> None:
        try:
            view = await self._door.job(job_id)
            async with aclosing(states(self._door.service, view, None)) as following:
                async for state in following:
                    self._put((view, state))
        except ZImageError as error:
            self._put({"type": "error", "job_id": job_id, "error": error_body(self._websocket, error)})
        if self._followed.get(job_id) is asyncio.current_task():
            del self._followed[job_id]
            self._by_id.discard(job_id)

    def _put(self, unsent: Unsent) -> None:
        try:
            self._unsent.put_nowait(unsent)
        except asyncio.QueueFull:
            raise SlowReader from None

    async def _look_for_mine(self) -> None:
        """Jobs that have not ended, then every second those that were made since the last look.

        `subscribed` is said after the first: whoever asks for the jobs then misses no end of one.
        """
        looked_at: float | None = None
        seen: set[str] = set()
        while True:
            now = time.time()
            try:
                made = await self._made_since(looked_at or now)
                found = made - seen
                if looked_at is None:
                    found = {view.id async for view in self._mine(JobQuery(user=self._door.user, statuses=ACTIVE))}
                    self._put({"type": "subscribed", "jobs": "mine"})
                for job_id in found:
                    self._follow(job_id)
                looked_at, seen = now, made
            except ZImageError as error:
                self._put({"type": "error", "error": error_body(self._websocket, error)})
            await asyncio.sleep(LOOK_EVERY_S)

    async def _made_since(self, at: float) -> set[str]:
        made = set()
        async for view in self._mine(JobQuery(user=self._door.user)):
            if view.created_at < at - LOOK_BACK_S:
                break
            made.add(view.id)
        return made

    async def _mine(self, query: JobQuery) -> AsyncGenerator[JobView, None]:
        """All pages."""
        while True:
            page = await self._door.service.find(query)
            for view in page:
                yield view
            if len(page) < query.limit:
                return
            query = replace(query, before=page[-1].id)
