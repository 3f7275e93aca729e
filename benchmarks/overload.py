"""Ten times more than the service can draw, for a minute: what the lucky ones get, and how fast the others are told.

    python -m benchmarks.overload [--seconds 60] [--times 10] [--side 128] [--steps 20] [--haproxy] [--json FILE]

Starts the product in processes of its own with the embedded model and a queue of about three seconds. First the peak:
a closed loop of 8 clients. Then the same pictures in an open loop: requests are sent at their time, whatever became
of those before, as many users do who know nothing of each other. Every answer's time is counted from that moment, so
what the client's own event loop or the connection costs is in it. Goodput is pictures per second while the load lasts.
After it one picture after the other is asked for, until one is there as soon as before. Memory is the resident set
of every process of the service, once a second. The clients share the machine with the service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from benchmarks.cache_hits import environment
from benchmarks.machine import facts
from benchmarks.overhead import server

PEAK_S, PEAK_CLIENTS = 15.0, 8
QUEUE_S = 3.0  # as much work as the queue holds, so that who gets in does not wait for longer
SOLO = 5  # pictures, one after the other, before the load
CALM = 1.5  # a picture that takes at most so many times what it took before is as before
RECOVERY_S = 60.0
PROCESSES = ("Gateway", "Dispatcher", "Denoiser", "TextEncoder", "ProxyActor")

numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Answer:
    """`sent_at` is when it should have been sent, `ended_at` when all of it had arrived; `status` 0: none came."""

    sent_at: float
    ended_at: float
    status: int
    retry_after: str | None

    @property
    def ms(self) -> float:
        return 1e3 * (self.ended_at - self.sent_at)


@dataclass(frozen=True, slots=True)
class Client:
    session: aiohttp.ClientSession
    url: str
    side_px: int
    steps: int

    async def ask(self, sent_at: float | None = None) -> Answer:
        number = next(numbers)
        body = {
            "prompt": f"a red fox on a yellow background, number {number}",
            "size": f"{self.side_px}x{self.side_px}",
            "num_inference_steps": self.steps,
        }
        sent_at = time.perf_counter() if sent_at is None else sent_at
        try:
            async with self.session.post(
                f"{self.url}/v1/images/generations", json=body, headers={"Accept": "image/png"}
            ) as answer:
                await answer.read()
                return Answer(sent_at, time.perf_counter(), answer.status, answer.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError):
            return Answer(sent_at, time.perf_counter(), 0, None)


@dataclass
class Memory:
    """Resident MB of each process of the service, by its kind, over time."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    async def watch(self) -> None:
        processes = {name: found for name in PROCESSES if (found := _processes(name))}
        while True:
            for name, found in processes.items():
                mb = sum(process.memory_info().rss for process in found) / 1e6
                self.samples.setdefault(name, []).append(mb)
            await asyncio.sleep(1)


@dataclass(frozen=True, slots=True)
class Result:
    """Rates are per second; `growth_mb` is the last third's mean against that of the middle one."""

    side_px: int
    steps: int
    peak_per_s: float
    offered_per_s: float
    goodput_per_s: float
    statuses: dict[int, int]
    without_retry_after: int
    refused_median_ms: float
    refused_p99_ms: float
    refused_max_ms: float
    drawn_median_ms: float
    recovery_s: float
    growth_mb: dict[str, float]
    peak_mb: dict[str, float]
    load_average: float

    @property
    def goodput(self) -> float:
        return self.goodput_per_s / self.peak_per_s


async def peak(client: Client, seconds: float) -> float:
    """Pictures per second of a closed loop, those of the first second not counted."""
    end, ended = time.perf_counter() + seconds + 1, list[float]()

    async def loop() -> None:
        while time.perf_counter() < end:
            answer = await client.ask()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} at the peak")
            ended.append(answer.ended_at)

    await asyncio.gather(*(loop() for _ in range(PEAK_CLIENTS)))
    return sum(end - seconds <= at < end for at in ended) / seconds


async def flood(client: Client, per_s: float, seconds: float) -> tuple[list[Answer], float]:
    """All answers, and when the last was sent."""
    asking: list[asyncio.Task[Answer]] = []
    began = time.perf_counter()
    for number in range(round(per_s * seconds)):
        due = began + number / per_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asking.append(asyncio.create_task(client.ask(due)))
    end = time.perf_counter()
    return await asyncio.gather(*asking), end


async def recovery(client: Client, solo_s: float, since: float) -> float:
    """Seconds until a picture that is asked for is there as soon as before."""
    while time.perf_counter() < since + RECOVERY_S:
        asked = time.perf_counter()
        answer = await client.ask()
        if answer.status == 200 and answer.ended_at - asked <= CALM * solo_s + 0.1:
            return asked - since
        await asyncio.sleep(0.1)
    return math.inf


async def solo(client: Client) -> float:
    return statistics.median([(await client.ask()).ms / 1e3 for _ in range(SOLO)])


async def overload(client: Client, peak_per_s: float, times: float, seconds: float) -> Result:
    await solo(client)
    solo_s = await solo(client)
    memory = Memory()
    watching = asyncio.create_task(memory.watch())
    flooding = asyncio.create_task(flood(client, times * peak_per_s, seconds))
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    recovering = asyncio.create_task(recovery(client, solo_s, began + seconds))
    answers, end = await flooding
    recovery_s = await recovering
    watching.cancel()
    drawn = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status in (429, 503)]
    times_ms = sorted(answer.ms for answer in refused) or [math.nan]
    return Result(
        side_px=client.side_px,
        steps=client.steps,
        peak_per_s=peak_per_s,
        offered_per_s=len(answers) / seconds,
        goodput_per_s=sum(answer.ended_at < end for answer in drawn) / (end - began),
        statuses=dict(Counter(answer.status for answer in answers)),
        without_retry_after=sum(answer.retry_after is None for answer in refused),
        refused_median_ms=statistics.median(times_ms),
        refused_p99_ms=times_ms[math.ceil(0.99 * len(times_ms)) - 1],
        refused_max_ms=times_ms[-1],
        drawn_median_ms=statistics.median(answer.ms for answer in drawn),
        recovery_s=recovery_s,
        growth_mb={name: _growth(mb) for name, mb in memory.samples.items()},
        peak_mb={name: max(mb) for name, mb in memory.samples.items()},
        load_average=os.getloadavg()[0],
    )


def _growth(mb: list[float]) -> float:
    third = max(1, len(mb) // 3)
    return statistics.mean(mb[-third:]) - statistics.mean(mb[third : 2 * third] or mb)


def _processes(name: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = "".join(child.cmdline())
            if title.startswith("ray::") and name in title and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


@contextlib.contextmanager
def client_of(port: int, side_px: int, steps: int) -> Iterator[Client]:
    connector = aiohttp.TCPConnector(limit=0)
    session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120))
    yield Client(session, f"http://127.0.0.1:{port}", side_px, steps)


async def run(port: int, side_px: int, steps: int, peak_per_s: float | None, options: argparse.Namespace) -> Any:
    """The peak, or with it what happens beyond."""
    with client_of(port, side_px, steps) as client:
        async with client.session:
            if peak_per_s is None:
                await peak(client, 2.0)
                return await peak(client, PEAK_S)
            return await overload(client, peak_per_s, options.times, options.seconds)


@contextlib.contextmanager
def config_of(depth: int) -> Iterator[Path]:
    """The shipped configuration with another bound of the queue."""
    config = yaml.safe_load(Path("config/serve.yaml").read_text())
    config["applications"][0]["args"]["queue"] = {"max_depth": depth, "max_depth_per_user": depth}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        yield Path(file.name)


def report(result: Result, haproxy: bool) -> str:
    machine = facts()
    rows = {
        "peak, pictures/s": f"{result.peak_per_s:.2f}",
        "offered, requests/s": f"{result.offered_per_s:.1f}",
        "goodput, pictures/s": f"{result.goodput_per_s:.2f} ({result.goodput:.0%} of the peak)",
        "answers": ", ".join(f"{count} × {status}" for status, count in sorted(result.statuses.items())),
        "refusals without Retry-After": str(result.without_retry_after),
        "refusal: median, 99 % below, worst": f"{result.refused_median_ms:.0f}, {result.refused_p99_ms:.0f}, "
        f"{result.refused_max_ms:.0f} ms",
        "picture: median": f"{result.drawn_median_ms:.0f} ms",
        "as fast as before after": f"{result.recovery_s:.1f} s",
        "memory, last third against the middle one": ", ".join(
            f"{name} {mb:+.1f} MB" for name, mb in result.growth_mb.items()
        ),
    }
    head = (
        f"{machine['date'][:10]}, commit {machine['commit']}, {machine['cpu']}, {os.cpu_count()} cores, Python "
        f"{machine['python']}; {'HAProxy' if haproxy else 'default proxy'}, {result.side_px} px, {result.steps} steps; "
        f"load average at the end {result.load_average:.1f}"
    )
    return "\n".join([head, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10, help="as much as the peak is offered")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peak", type=float, help="pictures/s, where it is known")
    parser.add_argument("--haproxy", action="store_true", help="Ray Serve's HAProxy mode instead of its Python proxy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with environment(options.haproxy):
        peak_per_s = options.peak
        if peak_per_s is None:
            with server() as port:
                peak_per_s = asyncio.run(run(port, options.side, options.steps, None, options))
        print(f"peak {peak_per_s:.2f} pictures/s", flush=True)
        with config_of(max(4, math.ceil(QUEUE_S * peak_per_s))) as config, server(config) as port:
            result = asyncio.run(run(port, options.side, options.steps, peak_per_s, options))
    print(report(result, options.haproxy))
    if options.json:
        options.json.write_text(json.dumps(facts() | asdict(result), indent=1))


if __name__ == "__main__":
    main()
