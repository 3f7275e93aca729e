from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve.jobs.dispatcher import Dispatcher
from tests.unit.replicas import Replicas, beat, dispatcher_over


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


@pytest.fixture
async def jobs(replicas: Replicas, tmp_path: Path) -> AsyncIterator[Dispatcher]:
    dispatcher = dispatcher_over(replicas, tmp_path)
    await dispatcher.open()
    beat(dispatcher)
    yield dispatcher
    await dispatcher.close()
