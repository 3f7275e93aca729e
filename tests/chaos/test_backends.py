"""The database and the bucket go away for half a minute, in every way in which servers do, and come back."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.chaos.conftest import configured
from tests.chaos.crowd import Crowd, crowd_of, drawn
from tests.chaos.faults import stopped
from tests.cluster.load import Undisturbed
from tests.cluster.server import Server
from tests.stores.conftest import new_database
from tests.stores.moto import S3Server, s3_server

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.nightly]

AWAY_S = 30.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A service on PostgreSQL and S3. `postgresql` is the folder of its database server."""

    server: Server
    s3: S3Server
    postgresql: Path

    @property
    def url(self) -> str:
        return self.server.url

    def database_processes(self) -> list[psutil.Process]:
        """Its postmaster, then those that it has started."""
        pid = int((self.postgresql / "data/postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children(recursive=True)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, postgresql: str) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("backends")
    with s3_server() as s3:
        assets = {"store": "s3", "s3": {"bucket": s3.new_bucket(), "endpoint": s3.endpoint}}
        config = configured(folder, database=new_database(postgresql), assets=assets)
        server = Server.start(folder, config, environment=CREDENTIALS)
        yield Cluster(server, s3, Path(postgresql.rpartition("host=")[2]))
        server.stop()


async def refused_in_words(url: str, crowd: Crowd) -> None:
    """New jobs are refused with the time to come again, or wait until they are taken."""
    body = {"prompt": "a cat", "size": "64x64"}
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            answer = await client.post("/v1/jobs", json=body)
    except httpx.ReadTimeout:
        return
    assert answer.status_code in (202, 503), answer.text
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["hint"]
    else:
        crowd.accepted.pop(answer.json()["id"], None)


async def test_a_bucket_that_hangs_for_half_a_minute_costs_no_job(
    cluster: Cluster, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    async with crowd_of(cluster.url, 8) as crowd:
        await asyncio.sleep(dice.uniform(0, 1))
        with stopped(psutil.Process(cluster.s3.process.pid)):
            await refused_in_words(cluster.url, crowd)
            await asyncio.sleep(AWAY_S)
        await crowd.unharmed(undisturbed)
    await drawn(cluster.url)


async def test_a_database_that_hangs_for_half_a_minute_costs_no_job(
    cluster: Cluster, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    async with crowd_of(cluster.url, 8) as crowd:
        await asyncio.sleep(dice.uniform(0, 1))
        with stopped(*cluster.database_processes()):
            await refused_in_words(cluster.url, crowd)
            await asyncio.sleep(AWAY_S)
        await crowd.unharmed(undisturbed)
    await drawn(cluster.url)


async def test_a_database_that_dies_and_starts_after_half_a_minute_costs_no_job(
    cluster: Cluster, dice: random.Random, undisturbed: Undisturbed, round: int
) -> None:
    """kill -9 of the postmaster and its children, as by a lost machine; it recovers from its log."""
    async with crowd_of(cluster.url, 8) as crowd:
        await asyncio.sleep(dice.uniform(0, 1))
        processes = cluster.database_processes()
        start = partial(started_again, processes[0].cmdline(), processes[0].uids().real, processes[0].gids().real)
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, 20)
        try:
            for _ in range(3):
                await refused_in_words(cluster.url, crowd)
            async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
                assert (await client.get("/healthz")).status_code == 200
            await asyncio.sleep(AWAY_S)
        finally:
            await asyncio.to_thread(start, cluster.postgresql)
        await crowd.unharmed(undisturbed)
    await drawn(cluster.url)


def started_again(command: list[str], user: int, group: int, folder: Path) -> None:
    """As it was: `postgres -D FOLDER OPTIONS`."""
    program, _, data, *options = command
    who = {"user": user, "group": group} if os.getuid() == 0 else {}
    pg_ctl = [str(Path(program).parent / "pg_ctl"), "start", "-w", "-D", data, "-o", shlex.join(options)]
    subprocess.run(pg_ctl, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who)
