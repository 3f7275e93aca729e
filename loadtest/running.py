"""A deployment while it runs: its processes, each in a group of its own, the memory of all of them, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from loadtest.subjects import ROOT, Start, Subject

STOP_S = 40.0
SAMPLE_S = 2.0


@dataclass
class Deployment:
    url: str
    began: float  # time.perf_counter()
    log: Path
    processes: list[subprocess.Popen[bytes]]
    peak_bytes: int = 0
    _seen: dict[int, psutil.Process] = field(default_factory=dict)

    def sample(self) -> None:
        """Proportional set size of the whole tree: memory that processes share counts once."""
        self._look()
        total = 0
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.peak_bytes = max(self.peak_bytes, total)

    def check(self) -> None:
        """Raises RuntimeError with the end of the log where a process has ended by itself."""
        for process in self.processes:
            if process.poll() is not None:
                command = " ".join(map(str, process.args)) if isinstance(process.args, (list, tuple)) else process.args
                end = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command!r} has ended with {process.returncode}:\n{end}")

    def end(self) -> None:
        """By id, and everything that they have started."""
        self._look()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for left in self._seen.values():
            with contextlib.suppress(psutil.Error):
                left.kill()  # psutil makes sure that the id is still the same process
        for process in self.processes:
            process.wait()

    def _look(self) -> None:
        for root in self.processes:
            with contextlib.suppress(psutil.Error):
                known = psutil.Process(root.pid)
                for process in (known, *known.children(recursive=True)):
                    self._seen.setdefault(process.pid, process)


@contextlib.asynccontextmanager
async def deployment(subject: Subject, port: int, folder: Path) -> AsyncIterator[Deployment]:
    """Started, but not yet ready; ended however the block ends."""
    log = folder / "log"
    data = folder / "data"
    data.mkdir()
    found = Deployment(f"http://127.0.0.1:{port}", time.perf_counter(), log, [])
    sampling: asyncio.Task[None] | None = None
    try:
        _start(found, subject.processes(port, data))
        sampling = asyncio.create_task(_sample(found))
        yield found
    finally:
        if sampling is not None:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
        found.end()


def _start(found: Deployment, starts: list[Start]) -> None:
    with found.log.open("wb") as output:
        for start in starts:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **dict(start.environment)}
            # No sessions of their own: Linux shares a busy CPU between sessions first, and some have more processes.
            process = subprocess.Popen(
                start.command, cwd=ROOT, stdout=output, stderr=output, env=environment, process_group=0
            )
            found.processes.append(process)


async def _sample(found: Deployment) -> None:
    while True:
        await asyncio.to_thread(found.sample)
        await asyncio.sleep(SAMPLE_S)
