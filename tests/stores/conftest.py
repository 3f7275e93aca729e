"""The same tests over both databases: SQLite in a file, and a real PostgreSQL of this test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from ulid import ULID

from serve.jobs.store import SqlJobStore, store_of
from serve.settings import Settings

SERVER_USER = "postgres"  # PostgreSQL refuses to run as root


def postgresql_programs() -> Path | None:
    """Debian keeps them off the PATH, in a folder for each version."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(newest[-1]) if newest else shutil.which("initdb")
    return Path(found).parent if found else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A URL without a database name; the server listens on a Unix socket only."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: make test-deps")
    with tempfile.TemporaryDirectory(prefix="zimage-pg-", ignore_cleanup_errors=True) as folder:
        user = pwd.getpwnam(SERVER_USER) if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        os.chown(folder, user.pw_uid, user.pw_gid)

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", f"{folder}/data", *arguments]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(command, user=user.pw_uid, group=user.pw_gid, cwd=folder, check=True, **quiet)

        run("initdb", "-A", "trust", "-U", "zimage", "--no-sync", "-E", "UTF8", "--locale", "C")
        run("pg_ctl", "start", "-w", "-o", f"-c listen_addresses='' -k {folder}")
        try:
            yield f"postgresql+psycopg://zimage@/{{name}}?host={folder}"
        finally:
            run("pg_ctl", "stop", "-m", "immediate")


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Of an empty database."""
    if request.param == "sqlite":
        return Settings(data=tmp_path)
    return Settings(data=tmp_path, database=new_database(request.getfixturevalue("postgresql")))


def new_database(url: str) -> str:
    """An empty one on the server of this URL, which has no name yet."""
    name = f"jobs_{str(ULID()).lower()}"
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return url.format(name=name)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[SqlJobStore]:
    store = store_of(settings)
    await store.open()
    yield store
    await store.close()
