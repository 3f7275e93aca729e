"""Ends Ray's processes whose server was killed: of a few, Ray itself takes more than a minute to notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 10.0


def watch(folder: Path) -> None:
    """Starts a process that outlives this one, ends what it left in `folder`, and then itself."""
    subprocess.Popen(
        [sys.executable, "-m", "deployments.leftovers", str(folder)], stdin=subprocess.PIPE, start_new_session=True
    )


def end(folder: Path) -> list[int]:
    """Kills what still runs on `folder`; returns what could not be ended."""
    deadline = time.monotonic() + PATIENCE_S
    while (pids := running(folder)) and time.monotonic() < deadline:
        for pid in pids:
            _kill(pid)
        time.sleep(0.1)
    return pids


def running(folder: Path) -> list[int]:
    """Processes of a Ray session whose files are in `folder`."""
    session = f"{folder}/ray/session_"
    entries = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [int(entry.name) for entry in entries if _belongs(entry, session)]


def _belongs(process: Path, session: str) -> bool:
    """Most carry the session's path as an argument; those that replaced theirs by a title keep a log open there."""
    try:
        arguments = (process / "cmdline").read_bytes()
        if arguments.startswith(b"ray::"):
            return any(_target(link).startswith(session) for link in (process / "fd").iterdir())
    except OSError:  # ended meanwhile, or someone else's
        return False
    program = os.path.basename(arguments.split(b"\0")[0])
    return program.startswith((b"python", b"raylet", b"gcs_server")) and session.encode() in arguments


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.stdin.read()  # ends when the server does, however it ends
    end(Path(sys.argv[1]))
