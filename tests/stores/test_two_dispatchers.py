"""Two Dispatchers alive at once, in processes of their own: one is stalled, a second takes over, the first wakes up."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from serve.jobs.record import JobRecord
from serve.jobs.store import store_of
from serve.messages import JobQuery, JobStatus
from serve.settings import Settings


class Process:
    """One Dispatcher, and the lines that it has said so far."""

    def __init__(self, name: str, settings: Settings, *options: str) -> None:
        arguments = [name, str(settings.data), settings.database or "-", *options]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.stores.dispatcher_process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.strip())

    def says(self, word: str) -> list[str]:
        """The jobs of all lines that begin with this word."""
        return [line.partition(" ")[2] for line in list(self.lines) if line.split(" ")[0] == word]

    def until(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.lines[-5:]
            assert self.popen.poll() is None, self.lines[-5:]
            time.sleep(0.02)

    def stopped(self) -> bool:
        return psutil.Process(self.popen.pid).status() == psutil.STATUS_STOPPED

    def stalls(self) -> None:
        """Where it was told to at its start."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("now\n")
        self.popen.stdin.flush()
        self.until(self.stopped)

    def works(self) -> None:
        self.until(lambda: len(self.says("ended")) > 10)


@contextmanager
def dispatcher(name: str, settings: Settings, *options: str) -> Iterator[Process]:
    process = Process(name, settings, *options)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()
        process._reading.join()
        assert process.popen.stdin is not None
        assert process.popen.stdout is not None
        process.popen.stdin.close()
        process.popen.stdout.close()


def stored(settings: Settings) -> dict[str, JobRecord]:
    async def read() -> list[JobRecord]:
        store = store_of(settings)
        try:
            return await store.find(JobQuery(limit=100_000))
        finally:
            await store._engine.dispose()

    return {record.id: record for record in asyncio.run(read())}


def drawn_by(record: JobRecord) -> str:
    return chr(record.images[0].bytes)


def check(settings: Settings, old: Process, new: Process, before: dict[str, JobRecord]) -> None:
    """`before` is the store after the new one has taken over."""
    accepted, told_by_old, told_by_new = old.says("accepted"), old.says("ended"), new.says("ended")
    after = stored(settings)
    assert {id for id in after if after[id].submission.user == "a"} == {
        id for id in before if before[id].submission.user == "a"
    }
    for job_id, record in before.items():
        if record.status.terminal:
            assert after[job_id] == record
        elif after[job_id].status.terminal:
            assert drawn_by(after[job_id]) == "b"
    assert set(accepted) <= set(after)
    assert all(drawn_by(after[job_id]) == "a" for job_id in told_by_old)
    assert all(drawn_by(after[job_id]) == "b" for job_id in told_by_new)
    mine = [record for record in after.values() if record.submission.user == "a"]
    (taken_over,) = map(float, new.says("open"))
    assert all(record.created_at < taken_over for record in mine)
    assert all((record.completed_at or 0) < taken_over for record in mine if drawn_by(record) == "a")
    assert all(record.status is JobStatus.SUCCEEDED for record in mine)
    assert {drawn_by(record) for record in mine} == {"a", "b"}


def test_a_stalled_dispatcher_that_wakes_up_writes_no_more(settings: Settings) -> None:
    with dispatcher("a", settings, "between") as old:
        old.works()
        old.stalls()
        with dispatcher("b", settings) as new:
            new.works()
            before = stored(settings)
            old.popen.send_signal(signal.SIGCONT)
            old.until(lambda: "stale" in old.lines)
            new.until(lambda: len(new.says("ended")) > 60)
            check(settings, old, new, before)


@pytest.mark.parametrize("where", ["insert", "commit"])
def test_a_dispatcher_that_stalls_within_a_transaction(settings: Settings, where: str) -> None:
    """The new one does not begin before that transaction has ended: with the stalled process, or by the server."""
    with dispatcher("a", settings, where) as old:
        old.works()
        old.stalls()
        with dispatcher("b", settings) as new:
            if settings.database is None:  # the file is locked for as long as the process lives
                time.sleep(2)
                assert not new.says("open")
                old.popen.send_signal(signal.SIGCONT)
            new.works()
            before = stored(settings)
            old.popen.send_signal(signal.SIGCONT)
            old.until(lambda: "stale" in old.lines)
            new.until(lambda: len(new.says("ended")) > 60)
            check(settings, old, new, before)
