"""What `zimage doctor --deep` asks of a database, without taking it away from who has it."""

from __future__ import annotations

from serve.deep import check_database
from serve.jobs.store import SqlJobStore
from serve.settings import Settings


async def test_a_database_in_use_is_found_good_and_keeps_its_writer(store: SqlJobStore, settings: Settings) -> None:
    detail = await check_database(settings)
    assert "is whole" in detail or "tables may be created" in detail
    await store.check()
    await store.remember("still", "mine")
