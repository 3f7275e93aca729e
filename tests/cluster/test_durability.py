"""Processes that die under a steady load: every accepted job ends once, with its own pictures.

`make test` kills everything, over SQLite (each process alone is test_bad_days.py's); `make nightly` kills each
process of every kind in turn before that, and does all of it over PostgreSQL too.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
import yaml

from tests.cluster.audit import Books
from tests.cluster.load import ENDED, Load, Undisturbed, under_load
from tests.cluster.server import ROOT, Server
from tests.stores.conftest import new_database

pytestmark = pytest.mark.cluster

KINDS = ("Gateway", "Dispatcher", "Denoiser", "TextEncoder")
REPLICAS = {"Gateway": 2, "Denoiser": 2}


def configured(folder: Path, database: str | None) -> Path:
    """The shipped configuration, with two Gateways and two Denoisers."""
    config = yaml.safe_load((ROOT / "config/serve.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= {"warmup_sizes_px": [64]} | ({"database": database} if database else {})
    for deployment in application["deployments"]:
        if deployment["name"] in REPLICAS:
            deployment["num_replicas"] = REPLICAS[deployment["name"]]
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def kill_all(server: Server) -> None:
    """As a power cut does: nobody is told."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    for process in processes:
        if process.is_running():
            process.kill()
    server.process.wait()
    psutil.wait_procs(processes, 20)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


async def kill_in_turn(load: Load, server: Server, kind: str, victims: int) -> None:
    """The next one is killed when the one before has been replaced, with the load standing all the time."""
    for index in range(victims):
        await load.begin()
        await under_load(load, server)
        before = server.replicas(kind)
        before[index].kill()
        await asyncio.to_thread(server.wait_until, lambda: replaced(server, kind, before), 90, f"a new {kind}")  # noqa: B023
        await load.end()


def replaced(server: Server, kind: str, before: list[psutil.Process]) -> bool:
    now = server.replicas(kind)
    return len(now) == len(before) and {process.pid for process in now} != {process.pid for process in before}


async def all_rounds(data: Path, database: str | None, undisturbed: Undisturbed, thorough: bool) -> None:
    config = configured(data, database)
    server = await asyncio.to_thread(Server.start, data, config)
    books, load = Books(data, database), Load(server.url, standing=50 if thorough else 20)
    try:
        for kind in KINDS if thorough else ():
            await kill_in_turn(load, server, kind, REPLICAS.get(kind, 1))
            await load.settled()
        await load.begin()
        await under_load(load, server)
        await load.end()
        kill_all(server)
        assert any(row["status"] not in ENDED for row in books.jobs().values())

        server = await asyncio.to_thread(Server.start, data, config)
        load.url = server.url
        await load.settled()
        await load.begin()
        await load.end()
        await load.settled()
        books.audit(load.accepted, await undisturbed.pictures({job.number for job in load.accepted.values()}))
    finally:
        books.close()
        await asyncio.to_thread(server.stop)


async def test_every_accepted_job_ends_once_whatever_dies(tmp_path: Path, undisturbed: Undisturbed) -> None:
    await all_rounds(tmp_path, None, undisturbed, thorough=False)


@pytest.mark.nightly
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_every_accepted_job_ends_once_whichever_dies(
    store: str, tmp_path: Path, undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    database = None if store == "sqlite" else new_database(request.getfixturevalue("postgresql"))
    await all_rounds(tmp_path, database, undisturbed, thorough=True)
