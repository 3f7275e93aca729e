"""`zimage doctor --deep`: what it starts is real, and what is broken is a fail."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serve.deep import check_assets, check_database, check_engine, timed
from serve.doctor import Finding
from serve.errors import ZImageError
from serve.settings import Settings


def found(work: Callable[[], Awaitable[str]]) -> Finding:
    return asyncio.run(timed("it", work, "the fix"))


def test_a_picture_is_drawn_by_the_real_engine() -> None:
    loaded, drawn = asyncio.run(check_engine(Settings(warmup_sizes_px=(64,), presets=None, default_size_px=64)))
    assert (loaded.status, drawn.status) == ("ok", "ok")
    assert drawn.detail.startswith("64x64, 8 steps, ")
    assert drawn.detail.endswith(" s")


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    (engine,) = asyncio.run(check_engine(Settings(model=str(tmp_path / "none"))))
    assert (engine.check, engine.status) == ("engine", "fail")
    assert engine.fix


def test_the_asset_store_is_written_and_left_clean(tmp_path: Path) -> None:
    finding = found(lambda: check_assets(Settings(data=tmp_path)))
    assert finding.status == "ok"
    assert [path for path in (tmp_path / "assets").rglob("*") if path.is_file()] == []


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    finding = found(lambda: check_assets(Settings(data=tmp_path / "data")))
    assert finding.status == "fail"
    assert finding.fix


def test_a_damaged_sqlite_file(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 200,)] * 500)
    connection.close()
    whole = (tmp_path / "jobs.db").read_bytes()
    assert "is whole" in asyncio.run(check_database(Settings(data=tmp_path)))
    (tmp_path / "jobs.db").write_bytes(whole[:5000] + b"\xff" * 5000 + whole[10000:])
    finding = found(lambda: check_database(Settings(data=tmp_path)))
    assert finding.status == "fail"


@pytest.mark.parametrize("url", ["postgresql+psycopg://nobody@127.0.0.1:9/none"])
def test_a_database_that_does_not_answer(url: str) -> None:
    finding = found(lambda: check_database(Settings(database=url)))
    assert (finding.status, finding.fix) == ("fail", "the fix")


def test_an_error_keeps_its_own_advice() -> None:
    async def fail() -> str:
        raise ZImageError("broken", hint="mend it")

    assert found(fail) == Finding("it", "fail", "broken", "mend it")
