"""When writes go together, and when they need not wait for each other."""

from __future__ import annotations

import asyncio

import pytest

from serve.jobs import commits
from serve.jobs.commits import Batch, GroupCommit, Outcome

LONG_S = 60.0


class Database:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def commit(self, batch: Batch) -> list[Outcome]:
        self.sizes.append(len(batch.deletes))
        return []


def write(writes: GroupCommit, job_id: str) -> asyncio.Future[None]:
    writes.batch.deletes.add(job_id)
    return writes.batch.applying()


async def test_after_a_pause_nobody_waits_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "WINDOW_S", LONG_S)
    database = Database()
    writes = GroupCommit(database.commit)
    async with asyncio.timeout(LONG_S / 4):
        await asyncio.gather(*(write(writes, f"{n}") for n in range(3)))
        monkeypatch.setattr(commits, "QUIET_S", 0.0)
        await write(writes, "later")
        await writes.close()
    assert database.sizes == [3, 1, 0], "what came together is one commit all the same; the last closes"


async def test_just_after_a_commit_the_next_waits_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "QUIET_S", LONG_S)
    monkeypatch.setattr(commits, "WINDOW_S", 0.5)
    database = Database()
    writes = GroupCommit(database.commit)
    await write(writes, "first")
    second = write(writes, "second")
    await asyncio.sleep(0.05)
    await asyncio.gather(second, write(writes, "third"))
    assert database.sizes == [1, 2]
    await writes.close()
