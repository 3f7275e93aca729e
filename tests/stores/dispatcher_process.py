"""A Dispatcher in a process of its own, over replicas that answer at once: says on stdout what its callers were told.

    python -m tests.stores.dispatcher_process NAME DATA DATABASE|- [insert|commit|between]

With the last argument it stops itself (SIGSTOP) in the middle of a transaction, or between two, once told to by a line
on stdin.
Lines are `open UNIX-TIME`, `accepted ID`, `ended ID` and `stale`, where its work ends. Pictures say by their size who
drew them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import Pool

from serve.assets.local import LocalAssets
from serve.errors import StaleWriter, Unavailable
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.store import store_of
from serve.messages import Generated, ImageRequest, StoredImage, Task
from serve.settings import Settings
from tests.unit.replicas import beat, order

DRAWING_S = 0.03


class Instant:
    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, request: ImageRequest) -> object:
        return None

    async def generate(self, task: Task, embeddings: object) -> Generated:
        await asyncio.sleep(DRAWING_S)
        image = StoredImage(asset_id=task.asset_id, seed=0, width=64, height=64, format="png", bytes=self.size)
        return Generated(image=image, started_at=time.time(), encode_s=0, denoise_s=DRAWING_S, decode_s=0)


def say(*words: str) -> None:
    print(*words, flush=True)


def stop_at(where: str) -> None:
    """At the first insert, the first commit after one, or behind one, after a line has come on stdin."""
    wanted, inserted, committed = threading.Event(), threading.Event(), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), wanted.set()), daemon=True).start()

    def stop() -> None:
        wanted.clear()
        os.kill(os.getpid(), signal.SIGSTOP)

    @event.listens_for(Engine, "before_cursor_execute")
    def before(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO jobs"):
            inserted.set()
            if where == "insert" and wanted.is_set():
                stop()

    @event.listens_for(Engine, "commit")
    def commit(connection: object) -> None:
        if where == "commit" and wanted.is_set() and inserted.is_set():
            stop()
        if inserted.is_set():
            committed.set()
        inserted.clear()

    @event.listens_for(Pool, "checkin")
    def checkin(*_: object) -> None:
        if where == "between" and wanted.is_set() and committed.is_set():
            stop()
        committed.clear()


async def opened(settings: Settings, size: int) -> Dispatcher:
    """As Ray Serve does: tried again until the store lets it in."""
    while True:
        jobs = Dispatcher(settings, Instant(size), store_of(settings), LocalAssets(settings.data / "assets"))
        try:
            await jobs.open()
        except OperationalError:
            say("waits")
        else:
            return jobs


async def one_job(jobs: Dispatcher, name: str) -> None:
    submission = order(user=name)
    try:
        job_id = await jobs.submit(submission)
    except Unavailable as error:
        if isinstance(error, StaleWriter):
            raise
        return  # the caller is told to try again
    say("accepted", job_id)
    async for _ in jobs.watch(job_id):
        pass
    say("ended", job_id)


async def main(name: str, data: Path, database: str | None) -> None:
    jobs = await opened(Settings(data=data, database=database), size=ord(name))
    say("open", str(time.time()))
    callers: set[asyncio.Task[None]] = set()
    while True:
        beat(jobs)
        callers.add(asyncio.create_task(one_job(jobs, name)))
        await asyncio.sleep(DRAWING_S / 2)
        for caller in [caller for caller in callers if caller.done()]:
            callers.remove(caller)
            if caller.exception() is not None:
                say("stale" if isinstance(caller.exception(), StaleWriter) else repr(caller.exception()))


if __name__ == "__main__":
    if len(sys.argv) > 4:
        stop_at(sys.argv[4])
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), None if sys.argv[3] == "-" else sys.argv[3]))
