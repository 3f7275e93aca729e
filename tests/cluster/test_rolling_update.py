"""Deploys while people draw: another number of replicas, other presets, a new version. Nobody notices."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.cluster.deploying import STATUS, deploy, of, run
from tests.cluster.people import BODY, denoisers_lost, people, pids, scaled, succeeded, until
from tests.cluster.server import ROOT, Server

pytestmark = [pytest.mark.cluster, pytest.mark.nightly]

PRESET = {"name": "sticker", "title": {"en": "New", "zh": "New"}, "size": "64x64", "num_inference_steps": 2}
GATEWAYS = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As a cluster has it: two Gateways, which finish what they have begun."""
    config = yaml.safe_load((ROOT / "config" / "serve.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= {"warmup_sizes_px": [64], "presets": None}
    of(application, "Gateway").update(num_replicas=GATEWAYS, graceful_shutdown_timeout_s=120)
    data = tmp_path_factory.mktemp("data")
    (data / "serve.yaml").write_text(yaml.safe_dump(config))
    server = Server.start(data, data / "serve.yaml")
    yield server
    server.stop()


def _rolled_out(server: Server) -> bool:
    found = json.loads(run(server, STATUS))
    assert found["status"] != "DEPLOY_FAILED", found
    return bool(found["status"] == "RUNNING")


async def test_another_number_of_replicas(served: Server) -> None:
    before = pids(served)
    async with people(served.url):
        for wanted in (2, 1):
            await scaled(served, wanted)
    assert len(before & pids(served)) >= len(before) - 1, "nobody else was restarted"
    assert denoisers_lost(served) == 0


async def test_a_new_version_with_other_presets(served: Server, tmp_path: Path) -> None:
    """Every process is replaced, the Dispatcher too."""
    presets = tmp_path / "presets.yaml"
    presets.write_text(yaml.safe_dump({"presets": [PRESET]}))
    before = pids(served)
    async with people(served.url) as all_:
        new = {"presets": str(presets), "default_steps": 6}
        await asyncio.to_thread(deploy, served, lambda app: app["args"].update(new))
        await until(served, lambda: not before & pids(served), "every process is a new one")
        await until(served, lambda: _rolled_out(served), "the roll-out is over")
        shown = (await all_.client.get("/v1/presets")).json()["data"]
    assert [preset["title"]["en"] for preset in shown] == ["New"]
    assert denoisers_lost(served) == 0


async def test_a_stop_hands_accepted_jobs_to_the_next_start(tmp_path: Path) -> None:
    first = await asyncio.to_thread(Server.start, tmp_path)
    async with httpx.AsyncClient(base_url=first.url, timeout=60) as client:
        jobs = [(await client.post("/v1/jobs", json=BODY | {"seed": seed})).json()["id"] for seed in range(40)]
    began = time.monotonic()
    await asyncio.to_thread(first.stop)
    assert time.monotonic() - began < 60
    second = await asyncio.to_thread(Server.start, tmp_path)
    try:
        async with httpx.AsyncClient(base_url=second.url, timeout=60) as client:
            for job_id in jobs:
                await succeeded(client, job_id)
    finally:
        await asyncio.to_thread(second.stop)
