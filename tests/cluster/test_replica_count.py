"""`serve deploy` of another number of Denoisers while people draw; all the roll-outs are in test_rolling_update.py."""

from __future__ import annotations

import pytest

from tests.cluster.people import denoisers_lost, people, pids, scaled
from tests.cluster.server import Server

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]


async def test_a_denoiser_comes_and_goes_and_nobody_notices(server: Server) -> None:
    before, lost = pids(server), denoisers_lost(server)
    try:
        async with people(server.url, drawing=1):
            await scaled(server, 2)
            await scaled(server, 1)
    finally:
        if len(server.replicas("Denoiser")) != 1:  # others share this server
            await scaled(server, 1)
    assert len(before & pids(server)) >= len(before) - 1, "nobody else was restarted"
    assert denoisers_lost(server) == lost
