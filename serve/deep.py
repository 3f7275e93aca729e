"""`zimage doctor --deep`: the parts of a service started for real, each with the seconds that it took."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from ulid import ULID

from serve.api import checks
from serve.assets.open import open_assets
from serve.doctor import INSTALL, ROOT, Finding, Plan
from serve.errors import ZImageError
from serve.messages import Expired, Failed, ImageRequest, Submission, Succeeded
from serve.settings import AssetSettings, Settings

if TYPE_CHECKING:
    from serve.local import LocalService

RAY_S = 120


def examine_deeply(config: Path) -> list[Finding]:
    """Loads the weights and draws, and starts a Ray of its own; a running service on this machine is left alone."""
    settings = Plan.read(config).settings
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    return asyncio.run(_examine(settings))


async def _examine(settings: Settings) -> list[Finding]:
    findings = await check_engine(settings)
    findings.append(await timed("assets", lambda: check_assets(settings), "make serve DATA=/some/other/dir"))
    findings.append(await timed("database", lambda: check_database(settings), "correct `database`"))
    findings.append(await timed("ray start", lambda: asyncio.to_thread(check_ray), INSTALL))
    return findings


async def timed(check: str, work: Callable[[], Awaitable[str]], fix: str) -> Finding:
    began = time.perf_counter()
    try:
        detail = await work()
    except (ZImageError, SQLAlchemyError, ImportError, OSError, sqlite3.Error, subprocess.SubprocessError) as error:
        message = error.message if isinstance(error, ZImageError) else str(error).splitlines()[0]
        return Finding(check, "fail", message, getattr(error, "hint", None) or fix)
    return Finding(check, "ok", f"{detail}, {time.perf_counter() - began:.1f} s")


async def check_engine(settings: Settings) -> list[Finding]:
    """Two checks from one start: how long loading takes, and how long a picture takes then."""
    try:
        from serve.local import open_service  # noqa: PLC0415 - imports torch
    except ImportError as error:
        return [Finding("engine", "fail", str(error), INSTALL)]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="zimage-") as scratch:
        alone = {"data": Path(scratch), "database": None, "assets": AssetSettings()}
        local = settings.model_copy(update=alone)
        try:
            async with open_service(local) as service:
                loaded = time.perf_counter()
                images = "; ".join([await _draw(service, local.of(model)) for model in local.served])
                drawn = time.perf_counter()
        except (ZImageError, RuntimeError, OSError) as error:  # torch tells lack of memory as a RuntimeError
            message = error.message if isinstance(error, ZImageError) else str(error).splitlines()[0]
            return [Finding("engine", "fail", message, getattr(error, "hint", None) or "zimage doctor")]
    return [
        Finding("engine", "ok", f"loaded and warmed up, {loaded - began:.1f} s"),
        Finding("picture", "ok", f"{images}, {drawn - loaded:.1f} s"),
    ]


async def _draw(service: LocalService, settings: Settings) -> str:
    """One picture of the default size, by the queue, the engine and the file encoder that a server has."""
    prompt, side = "a red fox on a yellow background", settings.default_px
    request = ImageRequest(
        model=settings.served_model_name,
        prompt=prompt,
        width=side,
        height=side,
        steps=checks.steps(None, None, settings),
        seed=1,
    )
    tokens = checks.text("prompt", prompt, settings.limits, service.tokenizers[settings.served_model_name])
    submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=tokens)
    await service.submit(submission)
    async for event in service.watch(submission.job_id):
        if isinstance(event, Succeeded):
            return f"{side}x{side}, {request.steps} steps, {event.images[0].bytes} bytes"
        if isinstance(event, Failed | Expired):
            raise ZImageError(event.error.message, hint=event.error.hint)
    raise ZImageError("the picture was not drawn")


async def check_assets(settings: Settings) -> str:
    """Writes, reads and deletes one."""
    store = open_assets(settings.model_copy(update={"data": settings.data.absolute()}))
    asset_id, data = f"{ULID()}-0", os.urandom(4096)
    await store.check_room()
    await store.write(asset_id, data, "png", {"doctor": True})
    try:
        if (await store.read(asset_id)).data != data:
            raise ZImageError("a file is read back with other bytes than were written")
    finally:
        await store.delete(asset_id)
    return "a file was written, read back and deleted"


async def check_database(settings: Settings) -> str:
    """Only reads: to open the store is to take it away from the service that has it."""
    if settings.database is None:
        return await asyncio.to_thread(_sqlite, settings.data.absolute() / "jobs.db")
    engine = create_async_engine(settings.database)
    try:
        async with engine.connect() as connection:
            allowed = await connection.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')"))
            if not allowed.scalar_one():
                raise ZImageError("the database's user may not create tables", hint="GRANT CREATE ON SCHEMA ... TO ...")
            version = (await connection.execute(text("SHOW server_version"))).scalar_one()
    finally:
        await engine.dispose()
    return f"PostgreSQL {version} answers, and tables may be created"


def _sqlite(file: Path) -> str:
    if not file.is_file():
        return f"{file} is made at the first start"
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=10)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise ZImageError(f"{file} is damaged: {found}", hint="put a backup in its place, docs/operations.md")
    return f"{file} is whole"


def check_ray() -> str:
    command = [sys.executable, "-m", "deployments.probe"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=RAY_S, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ZImageError(f"Ray does not start: {last}")
    return done.stdout.strip().splitlines()[-1]
