"""Processes that die under a crowd: every accepted job ends once, with its own picture."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.cluster.server import Server
from tests.cluster.test_pictures import BACKGROUNDS, background_of

pytestmark = pytest.mark.cluster

CROWD = 24
Row = tuple[str, str, str, int]


def rows(data: Path) -> list[Row]:
    """Id, status, prompt and attempt of every job, read beside the server."""
    with closing(sqlite3.connect(f"file:{data}/jobs.db?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT id, status, search, attempt FROM jobs ORDER BY id").fetchall()


def ended(data: Path) -> bool:
    return {status for _, status, *_ in rows(data)} <= {"succeeded", "failed", "canceled", "expired"}


def check_pictures(data: Path, jobs: list[Row]) -> None:
    """One file for each job, which shows what that job asked for."""
    files = {file.stem: file for file in (data / "assets").rglob("*.png")}
    assert set(files) == {f"{job_id}-0" for job_id, *_ in jobs}
    for job_id, status, prompt, _ in jobs:
        assert status == "succeeded"
        with Image.open(files[f"{job_id}-0"]) as image:
            assert background_of(np.asarray(image.convert("RGB")).astype(int)) in prompt


async def ask(server: Server, number: int) -> int | None:
    """None when the connection broke."""
    background = list(BACKGROUNDS)[number % len(BACKGROUNDS)]
    body = {"prompt": f"a cat on a {background} background", "seed": number, "num_inference_steps": 20, "cache": "skip"}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        try:
            return (await client.post("/v1/images/generations", json=body)).status_code
        except httpx.TransportError:
            return None


async def crowd(server: Server, data: Path, known: int) -> list[asyncio.Task[int | None]]:
    """All accepted, and some of them begun or done."""
    clients = [asyncio.create_task(ask(server, number)) for number in range(CROWD)]

    def under_way() -> bool:
        jobs = rows(data)[known:]
        return len(jobs) == CROWD and any(status == "running" for _, status, *_ in jobs)

    await asyncio.to_thread(server.wait_until, under_way, 60, "the crowd is accepted and jobs run")
    return clients


def kill_all(server: Server) -> None:
    """As a power cut does: nobody is told."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    for process in processes:
        if process.is_running():
            process.kill()
    server.process.wait()
    psutil.wait_procs(processes, 20)


async def test_every_accepted_job_survives_the_dispatcher_and_then_the_whole_server(tmp_path: Path) -> None:
    server = await asyncio.to_thread(Server.start, tmp_path)
    try:
        clients = await crowd(server, tmp_path, known=0)
        server.replica("Dispatcher").kill()
        assert await asyncio.gather(*clients) == [200] * CROWD
        first = rows(tmp_path)
        assert len(first) == CROWD
        assert max(attempt for *_, attempt in first) == 2
        check_pictures(tmp_path, first)

        clients = await crowd(server, tmp_path, known=CROWD)
        kill_all(server)
        assert None in await asyncio.gather(*clients)
        assert not ended(tmp_path)

        server = await asyncio.to_thread(Server.start, tmp_path)
        await asyncio.to_thread(server.wait_until, lambda: ended(tmp_path), 120, "all jobs have ended")
        both = rows(tmp_path)
        assert len(both) == 2 * CROWD
        assert both[:CROWD] == first
        check_pictures(tmp_path, both)
    finally:
        await asyncio.to_thread(server.stop)
