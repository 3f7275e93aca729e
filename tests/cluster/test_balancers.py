"""The product, Ray Serve's proxy included, behind nginx and HAProxy as shipped."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.api.balancers import balancer
from tests.cluster.server import Server

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
async def test_a_job_its_events_and_the_probes_pass(kind: str, server: Server, tmp_path: Path) -> None:
    async with (
        balancer(kind, tmp_path, server.url) as front,
        httpx.AsyncClient(base_url=front.url, timeout=60) as client,
    ):
        for path in ("/-/healthz", "/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        hostile = {"X-Request-Timeout-Seconds": "0.001"}  # Ray Serve's proxy alone would answer 408
        job = (await client.post("/v1/jobs", json={"prompt": "a cat", "size": "64x64"}, headers=hostile)).json()
        async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            events = [line async for line in stream.aiter_lines() if line.startswith("event:")]
        assert events[-1].endswith("succeeded")
        drawn = await client.post("/v1/images/generations", json={"prompt": "a cat", "size": "64x64"})
        assert drawn.status_code == 200
