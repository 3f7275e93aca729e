"""Packages in environments of their own, as their users have them: nothing of this project is in there."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


async def environment(*requirements: str) -> Path:
    """The `bin` of an environment with these packages, made once and kept. Skips where they cannot be installed."""
    name = hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:12]
    folder = ROOT / ".clients" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            await ran(sys.executable, "-m", "venv", "--clear", str(folder / "env"))
            code, output = await ran(
                str(folder / "env/bin/python"), "-m", "pip", "install", "-q", *requirements, seconds=1800
            )
            if code:
                pytest.skip(f"pip install {' '.join(requirements)} fails here: {output.strip().splitlines()[-1]}")
            (folder / "installed").touch()
    return folder / "env" / "bin"


async def ran(*command: str, seconds: float = 600, **how: object) -> tuple[int, str]:
    """The status of a command, and all that it has said."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, **how
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        process.kill()
        output, _ = await process.communicate()
        raise AssertionError(f"{command[0]} is not done after {seconds} s:\n{output.decode()[-4000:]}") from None
    return process.returncode or 0, output.decode()
