"""What goes wrong, made on purpose and undone in any case."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """They do not run, and are not gone either: nobody who waits for them is told."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            if process.is_running():
                os.kill(process.pid, signal.SIGCONT)


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[bool]:
    """A small file system of its own; False where this user may not mount any."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def filled(folder: Path, leaving: int) -> Iterator[None]:
    """The disk has so many bytes left; others may write while it is being filled."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while (free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leaving) > 0:
                with suppress(OSError):
                    file.write(bytes(min(free, 1 << 20)))
        yield
    finally:
        ballast.unlink(missing_ok=True)


@asynccontextmanager
async def read_only(folder: Path) -> AsyncIterator[None]:
    """As a file system that found an error in itself; tried until no file is being written."""
    async with asyncio.timeout(60):
        while not _remounted(folder, "ro"):
            await asyncio.sleep(0.02)
    try:
        yield
    finally:
        assert _remounted(folder, "rw")


def _remounted(folder: Path, how: str) -> bool:
    mount = ["mount", "-o", f"remount,{how}", str(folder)]
    return subprocess.run(mount, check=False, capture_output=True).returncode == 0


def damage(file: Path, dice: random.Random) -> None:
    """One byte in the middle, in place: another bit of the disk."""
    with file.open("r+b") as opened:
        at = dice.randrange(file.stat().st_size // 4, file.stat().st_size)
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ (1 << dice.randrange(8))]))


@contextmanager
def half_open(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections that say the beginning of a request, or nothing, and wait."""
    host, _, port = url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        sockets = []
        for number in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            if number % 2:
                connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: half")
            sockets.append(connection)
        yield sockets
