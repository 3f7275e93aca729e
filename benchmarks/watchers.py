"""What idle watchers cost: memory of the one Gateway, and what everybody else notices.

    python -m benchmarks.watchers [--watchers 1000] [--json FILE]

Starts the product, fills its queue with jobs that wait, and measures `/healthz` and a picture: without watchers, with
so many SSE streams of waiting jobs, with as many WebSockets, each subscribed to one, on top, and without again when
they have left. The same jobs run all the time, so that these differ in watchers only; ratios are to the mean of the
first and the last. Memory is the resident set of the Gateway's process, and of Ray's Python HTTP proxy (none with
RAY_SERVE_ENABLE_HA_PROXY=1, where HAProxy stands in front and the Gateway speaks HTTP itself).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.overhead import server

BACKLOG, WATCHED_FROM = 34, 22  # jobs; those that are watched do not begin before the end
LONG = {"prompt": "a red fox", "size": "256x256", "num_inference_steps": 25, "n": 10, "priority": "batch"}
SHORT = {"prompt": "a red fox on a yellow background", "size": "128x128"}
AT_ONCE = 50
SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds of one after the other, and resident MB."""

    watchers: str
    healthz_median_ms: float
    healthz_p95_ms: float
    picture_median_ms: float
    gateway_mb: float
    proxy_mb: float


def resident_mb(title: str) -> float:
    """Of the processes of that title that the server of this benchmark has started; 0 where there is none."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "".join(child.cmdline()).startswith(title):
                total += float(child.memory_info().rss) / 1e6
    return total


async def seconds(call: Callable[[], Awaitable[httpx.Response]], times: int) -> list[float]:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        (await call()).raise_for_status()
        took.append(1e3 * (time.perf_counter() - began))
    return took


async def measure(http: httpx.AsyncClient, watchers: str) -> Measured:
    await asyncio.sleep(SETTLE_S)
    healthz = await seconds(lambda: http.get("/healthz"), 200)
    pictures = await seconds(lambda: http.post("/v1/images/generations", json=SHORT), 15)
    measured = Measured(
        watchers=watchers,
        healthz_median_ms=statistics.median(healthz),
        healthz_p95_ms=statistics.quantiles(healthz, n=20)[-1],
        picture_median_ms=statistics.median(pictures),
        gateway_mb=resident_mb("ray::ServeReplica:zimage:Gateway"),
        proxy_mb=resident_mb("ray::ProxyActor"),
    )
    print(measured, flush=True)
    return measured


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_stream(port: int, job_id: str) -> Stream:
    """Answered, with the first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.splitlines()[0]:
        raise RuntimeError(head.decode())
    await reader.readuntil(b"event: job.queued")
    return reader, writer


async def open_socket(port: int, job_id: str) -> ClientConnection:
    ws = await connect(f"ws://127.0.0.1:{port}/v1/ws", open_timeout=60)
    await ws.send(json.dumps({"type": "subscribe", "jobs": [job_id]}))
    for expected in ("subscribed", "job.queued"):
        said = json.loads(await ws.recv())["type"]
        if said != expected:
            raise RuntimeError(f"{said} instead of {expected}")
    return ws


async def drain_stream(stream: Stream) -> None:
    """Until it ends, or this is cancelled. The writer is held, lest its end close the connection."""
    reader, writer = stream
    try:
        while await reader.read(65536):
            pass
    finally:
        writer.close()


async def drain_socket(ws: ClientConnection) -> None:
    try:
        async for _ in ws:
            pass
    finally:
        await ws.close()


async def open_all(opened: Callable[[str], Awaitable[None]], jobs: list[str], count: int) -> None:
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(count, first + AT_ONCE))
        await asyncio.gather(*(opened(jobs[number % len(jobs)]) for number in numbers))


async def run(port: int, count: int) -> list[Measured]:
    base = f"http://127.0.0.1:{port}"
    draining: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=base, timeout=120) as http:
        jobs = [(await http.post("/v1/jobs", json=LONG)).json()["id"] for _ in range(BACKLOG)]
        jobs = jobs[WATCHED_FROM:]

        async def stream(job_id: str) -> None:
            draining.add(asyncio.create_task(drain_stream(await open_stream(port, job_id))))

        async def socket(job_id: str) -> None:
            draining.add(asyncio.create_task(drain_socket(await open_socket(port, job_id))))

        await seconds(lambda: http.post("/v1/images/generations", json=SHORT), 3)
        results = [await measure(http, "none")]
        await open_all(stream, jobs, count)
        results.append(await measure(http, f"{count} SSE"))
        await open_all(socket, jobs, count)
        results.append(await measure(http, f"{count} SSE and {count} WebSockets"))
        ended = sum(task.done() for task in draining)
        if ended:
            raise RuntimeError(f"{ended} of {len(draining)} watchers were cut off")
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        results.append(await measure(http, "none, afterwards"))
    return results


def report(results: list[Measured]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return "\n".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.strip() or 'none'}, {platform.machine()}, Python "
            f"{platform.python_version()}",
            "",
            "| watchers | Gateway, MB more | proxy, MB more | `/healthz`, ratio | its 95th percentile | a picture |",
            "|---|---|---|---|---|---|",
            *(_row(result, results[0], results[-1]) for result in results),
        ]
    )


def _row(result: Measured, first: Measured, last: Measured) -> str:
    memory = (result.gateway_mb - first.gateway_mb, result.proxy_mb - first.proxy_mb)
    ratios = (
        2 * result.healthz_median_ms / (first.healthz_median_ms + last.healthz_median_ms),
        2 * result.healthz_p95_ms / (first.healthz_p95_ms + last.healthz_p95_ms),
        2 * result.picture_median_ms / (first.picture_median_ms + last.picture_median_ms),
    )
    cells = [result.watchers, *(f"{mb:.0f}" for mb in memory), *(f"{ratio:.2f}" for ratio in ratios)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    with server() as port:
        results = asyncio.run(run(port, options.watchers))
    print(report(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
