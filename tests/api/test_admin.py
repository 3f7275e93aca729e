"""What operators see and do: figures, everybody's queue, holding it; and `zimage top` over the same routes."""

from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest
from rich.console import Console

from serve.top import Frame, render


async def test_stats_say_what_is_known_and_null_for_the_rest(client, fox):
    await client.post("/v1/images/generations", json=fox)
    stats = (await client.get("/v1/stats")).json()
    assert (stats["ready"], stats["paused"], stats["denoisers"]) == (True, False, 1)
    assert stats["avg_response_time_ms"] > 0
    assert stats["images_per_minute"] > 0
    assert stats["jobs_ended"]["succeeded"] >= 1
    assert stats["uptime_minutes"] >= 0
    assert stats["gpu_memory_used_gb"] is None  # nobody has measured any
    assert [replica["role"] for replica in stats["replicas"]] == ["denoiser", "text_encoder"]
    assert stats["config"]["presets"]["refused"] is None


async def test_stats_count_the_queue(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        for priority in ("standard", "batch", "batch"):
            await client.post("/v1/jobs", json=fox | {"priority": priority})
        await service.until(running=1, queued=2)
        stats = (await client.get("/v1/stats")).json()
        jobs = (await client.get("/v1/admin/queue")).json()
        page = (await client.get("/v1/admin/queue", params={"limit": 1})).json()
    assert (stats["active_requests"], stats["queue_length"], stats["avg_response_time_ms"]) == (1, 2, None)
    assert stats["queue_by_priority"] == {"interactive": 0, "standard": 0, "batch": 2}
    assert [job["status"] for job in jobs["data"]] == ["running", "queued", "queued"]
    assert [job["queue"]["position"] for job in jobs["data"][1:]] == [1, 2]
    assert {job["user"] for job in jobs["data"]} == {"anonymous"}
    assert (jobs["has_more"], page["has_more"], len(page["data"])) == (False, True, 1)


async def test_pause_and_resume(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        assert (await client.post("/v1/admin/pause")).json()["paused"] is True
        assert (await client.post("/v1/admin/pause")).status_code == 200  # twice is once
        job = await client.post("/v1/jobs", json=fox)
        await asyncio.sleep(0.1)
        ready, queue = await client.get("/readyz"), (await client.get("/v1/queue")).json()
        assert (ready.status_code, ready.json()["paused"], ready.json()["phase"]) == (200, True, "paused")
        assert (queue["paused"], queue["depth"], queue["estimated_wait_seconds"]) == (True, 1, None)
        assert job.json()["status"] == "queued"
        assert (await client.post("/v1/admin/resume")).json()["paused"] is False
        await service.until(running=1, queued=0)


async def test_config_says_which_versions_are_at_work(client):
    presets = (await client.get("/v1/admin/config")).json()["files"]["presets"]
    assert presets["source"] == "presets.yaml"
    assert len(presets["hash"]) == 16


async def zimage(*args: str) -> tuple[int, str, str]:

    command = [sys.executable, "-m", "serve.cli", *args]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode(), errors.decode()


async def test_top_tells_what_the_api_tells(base_url):
    code, output, errors = await zimage("top", "--url", base_url, "--once", "--json")
    assert code == 0, errors
    told = json.loads(output)
    assert told["stats"]["denoisers"] == 1
    assert isinstance(told["jobs"], list)
    code, output, _ = await zimage("top", "--url", base_url, "--once")
    assert code == 0
    assert "ready" in output
    assert "local-denoiser" in output


async def test_top_without_a_service_says_so():
    code, _, errors = await zimage("top", "--url", "http://127.0.0.1:9", "--once")
    assert code == 1
    assert "does not answer" in errors
    assert "fix: is the service running there?" in errors


@pytest.mark.parametrize("jobs", [True, False])
async def test_a_frame_shows_places_and_refused_files(stuck, door, fox, jobs):
    async with stuck() as service, door(service.app) as client:
        for _ in range(2):
            await client.post("/v1/jobs", json=fox | {"n": 2})
        await service.until(running=1, queued=1)
        stats = (await client.get("/v1/stats")).json()
        shown = (await client.get("/v1/admin/queue")).json()["data"]
    stats["config"]["presets"]["refused"] = {"message": "presets.yaml:3: wrong", "at": None}
    console = Console(width=160, file=io.StringIO())
    console.print(render(Frame(stats, shown if jobs else None), "http://door"))
    text = console.file.getvalue()
    assert "presets.yaml:3: wrong" in text
    assert ("1/1" in text and "2 × 128x128" in text) == jobs
    assert ("administrator" in text) != jobs
