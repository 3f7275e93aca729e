from __future__ import annotations

import pytest

from serve.errors import NotFound
from serve.jobs.job import Listener
from serve.jobs.outboxes import GONE_S, Outboxes
from serve.messages import Canceled, Started


class Jobs:
    """Listeners by job; a job "x" is not there."""

    def __init__(self) -> None:
        self.listeners: dict[str, set[Listener]] = {}
        self.now = 0.0

    async def listen(self, job_id: str, listener: Listener, after: int) -> None:
        if job_id == "x":
            raise NotFound("no job 'x'")
        self.listeners.setdefault(job_id, set()).add(listener)

    def unlisten(self, job_id: str, listener: Listener) -> None:
        self.listeners[job_id].discard(listener)

    def listening(self, job_id: str) -> int:
        return len(self.listeners[job_id])

    def clock(self) -> float:
        return self.now

    def end(self, job_id: str) -> None:
        for listener in self.listeners[job_id]:
            listener(Canceled(job_id=job_id, seq=9, at=0.0))
        self.listeners[job_id].clear()


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def outboxes(jobs: Jobs) -> Outboxes:
    return Outboxes(jobs, jobs.clock)


async def test_a_job_that_nobody_watches_any_more_is_not_listened_for(jobs: Jobs, outboxes: Outboxes) -> None:
    for gateway in "ab":
        await outboxes.watch("j", gateway, 1)
    await outboxes.poll("a", "", 0, {"j": 1}, 0)
    assert jobs.listening("j") == 1
    await outboxes.poll("b", "", 0, {"j": 1}, 0)
    assert jobs.listening("j") == 0


async def test_a_newer_watch_outlives_the_news_that_the_older_one_has_ended(jobs: Jobs, outboxes: Outboxes) -> None:
    await outboxes.watch("j", "a", 1)
    await outboxes.watch("j", "a", 2)
    await outboxes.poll("a", "", 0, {"j": 1}, 0)
    assert jobs.listening("j") == 1


async def test_leaving_a_job_that_has_ended_or_was_never_there_changes_nothing(jobs: Jobs, outboxes: Outboxes) -> None:
    await outboxes.watch("j", "a", 1)
    jobs.end("j")
    with pytest.raises(NotFound):
        await outboxes.watch("x", "a", 2)
    _, _, events = await outboxes.poll("a", "", 0, {"j": 1, "x": 2}, 1)
    assert [event.seq for event in events] == [9]


async def test_a_gateway_that_is_gone_is_forgotten_and_starts_anew_if_it_comes_back(
    jobs: Jobs, outboxes: Outboxes
) -> None:
    await outboxes.watch("j", "a", 1)
    epoch, cursor, _ = await outboxes.poll("a", "", 0, {}, 0)
    jobs.now = GONE_S + 1
    await outboxes.poll("b", "", 0, {}, 0)
    assert jobs.listening("j") == 0
    await outboxes.watch("j", "a", 2)
    again, _, _ = await outboxes.poll("a", epoch, cursor, {}, 0)
    assert again != epoch
    assert jobs.listening("j") == 1


async def test_a_cursor_of_another_epoch_acknowledges_nothing(jobs: Jobs, outboxes: Outboxes) -> None:
    await outboxes.watch("j", "a", 1)
    (listener,) = jobs.listeners["j"]
    listener(Started(job_id="j", seq=1, at=0.0))
    jobs.end("j")
    _, cursor, events = await outboxes.poll("a", "of a dispatcher before", 2, {}, 1)
    assert (cursor, len(events)) == (2, 2)
