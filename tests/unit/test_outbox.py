from __future__ import annotations

import asyncio

from serve.jobs.outbox import COALESCE_S, Outbox
from serve.messages import Canceled, Event, Started


def news(seq: int) -> Event:
    return Started(job_id="j", seq=seq, at=0.0)


def end(seq: int) -> Event:
    return Canceled(job_id="j", seq=seq, at=0.0)


async def test_an_answer_that_was_lost_is_sent_again_until_acknowledged() -> None:
    outbox = Outbox()
    outbox.put(news(1))
    outbox.put(end(2))
    first = await outbox.take(0, 5)
    assert await outbox.take(0, 5) == first
    outbox.put(end(3))
    cursor, events = await outbox.take(first[0], 5)
    assert [event.seq for event in events] == [3]
    assert await outbox.take(cursor, 0.01) == (cursor, [])


async def test_it_waits_for_something_to_happen() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.take(0, 5))
    await asyncio.sleep(0)
    outbox.put(end(1))
    assert (await waiting)[1] == [end(1)]


async def test_small_news_waits_for_company_and_leaves_with_an_end() -> None:
    outbox, loop = Outbox(), asyncio.get_running_loop()
    waiting, began = asyncio.create_task(outbox.take(0, 5)), loop.time()
    await asyncio.sleep(0)
    outbox.put(news(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    outbox.put(news(2))
    outbox.put(end(3))
    cursor, events = await waiting
    assert [event.seq for event in events] == [1, 2, 3]
    assert loop.time() - began < COALESCE_S
    outbox.put(news(4))
    assert [event.seq for event in (await outbox.take(cursor, 5))[1]] == [4]
    assert loop.time() - began >= COALESCE_S
