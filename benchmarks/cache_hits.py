"""Answers from the cache per second, over HTTP through Ray Serve's proxy: pictures that were drawn before.

    python -m benchmarks.cache_hits [--haproxy] [--seconds 20] [--clients 16] [--json FILE]

Starts the product in processes of its own with the embedded model, draws a few pictures, and asks for them again in a
closed loop of keep-alive connections, in turns as base64 and as a link. An answer counts when it says `X-Cache: hit`;
after the run the number of drawn jobs must not have changed. The clients share the machine with the service.
`--haproxy` needs Debian's haproxy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from benchmarks.overhead import server

PICTURES = 32
FORMATS = ("b64_json", "url")


@dataclass(frozen=True, slots=True)
class Result:
    response_format: str
    hits_per_s: float
    median_ms: float
    p95_ms: float


def body(seed: int, response_format: str) -> dict[str, object]:
    return {"prompt": "a red fox on a yellow background", "seed": seed, "response_format": response_format}


async def ask(client: httpx.AsyncClient, seed: int, response_format: str) -> str:
    answer = await client.post("/v1/images/generations", json=body(seed, response_format))
    answer.raise_for_status()
    return answer.headers["X-Cache"]


async def measure(url: str, response_format: str, clients: int, seconds: float) -> Result:
    spent: list[float] = []
    end = time.perf_counter() + seconds

    async def loop(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while (began := time.perf_counter()) < end:
                use = await ask(client, (number + len(spent)) % PICTURES, response_format)
                if use != "hit":
                    raise RuntimeError(f"X-Cache: {use}")
                spent.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(loop(number) for number in range(clients)))
    per_s = len(spent) / (time.perf_counter() - began)
    p95 = statistics.quantiles(spent, n=20)[-1]
    return Result(response_format, per_s, 1e3 * statistics.median(spent), 1e3 * p95)


async def run(url: str, clients: int, seconds: float) -> list[Result]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(ask(client, seed, "url") for seed in range(PICTURES)))
    for response_format in FORMATS:
        await measure(url, response_format, clients, 2.0)
    results = []
    for response_format in FORMATS:
        results.append(await measure(url, response_format, clients, seconds))
        print(f"{response_format}: {results[-1].hits_per_s:.0f} hits/s")
    return results


@contextlib.contextmanager
def environment(haproxy: bool) -> Iterator[None]:
    """What Ray Serve reads when it starts."""
    if haproxy and shutil.which("haproxy") is None:
        raise SystemExit("error: there is no haproxy on the PATH\nfix: apt-get install haproxy")
    before = dict(os.environ)
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if haproxy else "0"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def report(results: list[Result], clients: int, haproxy: bool) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    how = f"{'HAProxy' if haproxy else 'default proxy'}, {clients} clients"
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.strip() or 'none'}, {machine}; {how}",
        "",
        "| response_format | hits/s | median | 95 % below |",
        "|---|---|---|---|",
    ]
    for result in results:
        figures = f"{result.hits_per_s:.0f} | {result.median_ms:.0f} ms | {result.p95_ms:.0f} ms"
        lines.append(f"| {result.response_format} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--haproxy", action="store_true", help="Ray Serve's HAProxy mode instead of its Python proxy")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with environment(options.haproxy), server() as port:
        results = asyncio.run(run(f"http://127.0.0.1:{port}", options.clients, options.seconds))
    print(report(results, options.clients, options.haproxy))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
