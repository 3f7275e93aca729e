"""A greedy user over HTTP: others are next, and are let in when he is not."""

from __future__ import annotations

from typing import Any

from tests.api.conftest import Guarded

BODY: dict[str, Any] = {"prompt": "a red fox", "size": "64x64", "num_inference_steps": 2}


async def test_one_greedy_user_neither_delays_nor_shuts_out_another(stuck, door):
    bounds = {"max_depth": 60, "max_depth_per_user": 20}
    async with stuck(access={"mode": "required"}, queue=bounds) as service:
        guarded = await Guarded.of(service, service.app.state.door.settings)
        await guarded.key("greedy")
        async with door(guarded.app) as client:
            greedy = [await client.post("/v1/jobs", json=BODY, headers=guarded.headers("greedy")) for _ in range(30)]
            mine = await client.post("/v1/jobs", json=BODY, headers=guarded.headers("ada"))

    statuses = [answer.status_code for answer in greedy]
    assert statuses.count(202) == 20 + 1  # those that wait, and the one that is drawn
    assert set(statuses) == {202, 503}
    refused = greedy[-1]
    assert refused.json()["error"]["code"] == "queue_full"
    assert "of yours" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert mine.status_code == 202
    assert mine.json()["queue"]["position"] == 1, mine.text
