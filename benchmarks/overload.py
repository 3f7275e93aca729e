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
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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

T = TypeVar("T")

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
class Usage:
    """Of each kind of process of the service: resident MB over time, and CPU seconds."""

    processes: dict[str, list[psutil.Process]]
    mb: dict[str, list[float]] = field(default_factory=dict)

    async def watch(self) -> None:
        while True:
            for name, found in self.processes.items():
                mb = sum(process.memory_info().rss for process in found) / 1e6
                self.mb.setdefault(name, []).append(mb)
            await asyncio.sleep(1)

    def cpu_s(self) -> dict[str, float]:
        return {
            name: sum(times.user + times.system for times in (process.cpu_times() for process in found))
            for name, found in self.processes.items()
        }


@dataclass(frozen=True, slots=True)
class Result:
    """Rates are per second; `growth_mb` is the last third's mean against that of the middle one.

    The peak is the mean of one right before the load and one right after it: the machine may be another one by then.
    `cpu_ms` is CPU time of each kind of process while the load lasted, by request.
    """

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
    cpu_ms: dict[str, float]
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


async def overload(client: Client, times: float, seconds: float) -> Result:
    await solo(client)
    solo_s, before = await solo(client), await peak(client, PEAK_S)
    usage = Usage({name: found for name in PROCESSES if (found := _processes(name))})
    watching = asyncio.create_task(usage.watch())
    cpu_s, began = usage.cpu_s(), time.perf_counter()
    flooding = asyncio.create_task(flood(client, times * before, seconds))
    await asyncio.sleep(seconds)
    spent = {name: after_s - cpu_s[name] for name, after_s in usage.cpu_s().items()}
    recovering = asyncio.create_task(recovery(client, solo_s, began + seconds))
    answers, end = await flooding
    recovery_s = await recovering
    watching.cancel()
    peak_per_s = (before + await peak(client, PEAK_S)) / 2
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
        growth_mb={name: _growth(mb) for name, mb in usage.mb.items()},
        peak_mb={name: max(mb) for name, mb in usage.mb.items()},
        cpu_ms={name: 1e3 * cpu / len(answers) for name, cpu in spent.items()},
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


async def run(port: int, options: argparse.Namespace, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await work(Client(session, f"http://127.0.0.1:{port}", options.side, options.steps))


async def first_peak(client: Client) -> float:
    await peak(client, 2.0)
    return await peak(client, PEAK_S)


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
        "CPU for a request": ", ".join(f"{name} {ms:.1f} ms" for name, ms in result.cpu_ms.items()),
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
    parser.add_argument("--peak", type=float, help="pictures/s, roughly, where it is known")
    parser.add_argument("--haproxy", action="store_true", help="Ray Serve's HAProxy mode instead of its Python proxy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with environment(options.haproxy):
        peak_per_s = options.peak
        if peak_per_s is None:
            with server() as port:
                peak_per_s = asyncio.run(run(port, options, first_peak))
        print(f"peak {peak_per_s:.2f} pictures/s", flush=True)
        with config_of(max(PEAK_CLIENTS, math.ceil(QUEUE_S * peak_per_s))) as config, server(config) as port:
            flooded = partial(overload, times=options.times, seconds=options.seconds)
            result = asyncio.run(run(port, options, flooded))
    print(report(result, options.haproxy))
    if options.json:
        options.json.write_text(json.dumps(facts() | asdict(result), indent=1))


if __name__ == "__main__":
    main()
