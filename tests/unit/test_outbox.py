from __future__ import annotations

import asyncio

from serve.jobs.outbox import Outbox
from serve.messages import Started


def event(seq: int) -> Started:
    return Started(job_id="j", seq=seq, at=0.0)


async def test_an_answer_that_was_lost_is_sent_again_until_acknowledged() -> None:
    outbox = Outbox()
    outbox.put(event(1))
    outbox.put(event(2))
    first = await outbox.take(0, 0.01)
    assert await outbox.take(0, 0.01) == first
    outbox.put(event(3))
    cursor, events = await outbox.take(first[0], 0.01)
    assert [e.seq for e in events] == [3]
    assert await outbox.take(cursor, 0.01) == (cursor, [])


async def test_it_waits_for_something_to_happen() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.take(0, 5))
    await asyncio.sleep(0)
    outbox.put(event(1))
    assert (await waiting)[1] == [event(1)]
