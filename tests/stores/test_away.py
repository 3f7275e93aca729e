"""Reading a database that is away is refused in words; what does not need it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.errors import Unavailable
from serve.jobs.store import store_of
from serve.messages import JobQuery
from serve.settings import Settings
from tests.unit.replicas import Replicas, beat, dispatcher_over


async def test_reading_is_refused_while_the_database_is_away(tmp_path: Path) -> None:
    store = store_of(Settings(data=tmp_path / "here"))
    await store.open()
    try:
        await away(store, tmp_path)
        for reading in (store.get("x"), store.find(JobQuery(user="u", limit=1)), store.recall()):
            with pytest.raises(Unavailable) as refused:
                await reading
            assert refused.value.retry_after == 5
        (tmp_path / "gone").rename(tmp_path / "here")
        assert await store.get("x") is None
    finally:
        await store.close()


async def test_metrics_are_told_while_the_database_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(work: object) -> None:
        raise Unavailable("away")

    jobs = dispatcher_over(Replicas(), tmp_path)
    await jobs.open()
    try:
        beat(jobs)
        assert "zimage_store_assets 0.0" in await jobs.metrics()
        monkeypatch.setattr(jobs._store, "look", refused)
        text = await jobs.metrics()
        assert "\nzimage_store_assets" not in text
        assert 'zimage_ready{model="z-image-turbo"} 1.0' in text
    finally:
        await jobs.close()


async def away(store: object, folder: Path) -> None:
    """Its connections are broken, and no new one finds it."""
    await store._engine.dispose()  # type: ignore[attr-defined]
    (folder / "here").rename(folder / "gone")
