"""One deployment in one round: cold start, pictures alone, again, a trace of arrivals, and ever larger crowds."""

from __future__ import annotations

import asyncio
import statistics
import struct
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from loadtest.plan import SIZES, Plan, order
from loadtest.running import Deployment, deployment
from loadtest.subjects import Order, Refused, Subject

START_S = 180.0
FINER = 1.15  # the largest stable crowd is known this well


@dataclass(slots=True)
class Attempt:
    """What one user saw, in seconds from asking."""

    size_px: int
    first_byte_s: float | None = None
    picture_s: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Figures:
    """Of one deployment in one round."""

    subject: str
    round: int
    cold_start_s: float = 0.0
    alone_s: dict[int, float] = field(default_factory=dict)
    again_s: float = 0.0
    again_busy_s: float = 0.0
    trace: list[Attempt] = field(default_factory=list)
    stable_crowd: int = 0
    crowd_failures: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Asker:
    subject: Subject
    client: httpx.AsyncClient
    patience_s: float

    async def ask(self, wish: Order) -> Attempt:
        attempt, began = Attempt(wish.size_px), time.perf_counter()
        own = replace(wish, prompt=f"{wish.prompt}, {self.subject.name}")  # not known from another way of asking

        def first() -> None:
            if attempt.first_byte_s is None:
                attempt.first_byte_s = time.perf_counter() - began

        try:
            async with asyncio.timeout(self.patience_s):
                picture = await self.subject.ask(self.client, own, first)
            if (side := _width(picture)) != wish.size_px:
                raise Refused(f"a picture of {side} pixels instead of {wish.size_px}")
            attempt.picture_s = time.perf_counter() - began
        except (Refused, httpx.HTTPError, TimeoutError) as error:
            attempt.error = f"{type(error).__name__}: {error}"[:200]
        return attempt

    async def must(self, wish: Order) -> float:
        attempt = await self.ask(wish)
        if attempt.picture_s is None:
            raise RuntimeError(f"{self.subject.name}: no picture, though nobody else asks: {attempt.error}")
        return attempt.picture_s


async def measure(
    group: list[Subject], rounds: dict[str, int], plan: Plan, port: int, bare_s: dict[int, float]
) -> list[Figures]:
    """Of one deployment, started once, with its ways of asking one after the other.

    `rounds` numbers the round of each subject; `bare_s` is what diffusers alone takes for each size, and sets the pace
    of the trace.
    """
    with tempfile.TemporaryDirectory() as folder:
        async with deployment(group[0], port, Path(folder)) as running, _client(running.url) as client:
            askers = [Asker(subject, client, plan.patience_s) for subject in group]
            cold_start_s = await _cold_start(askers[0], running)
            found = [await _figures(asker, plan, rounds[asker.subject.name], bare_s) for asker in askers]
            await asyncio.to_thread(running.sample)
            running.check()
    return [replace(figures, cold_start_s=cold_start_s, peak_bytes=running.peak_bytes) for figures in found]


async def _figures(asker: Asker, plan: Plan, round_: int, bare_s: dict[int, float]) -> Figures:
    """All but the cold start and the memory."""
    figures = Figures(asker.subject.name, round_)
    for size in SIZES:
        await asker.must(order("warm", size, size))
        spent = [await asker.must(order("alone", number, size)) for number in range(plan.alone)]
        figures.alone_s[size] = statistics.median(spent)
    figures.again_s = await _again(asker, plan)
    figures.trace = await _trace(asker, plan, round_, bare_s)
    figures.again_busy_s = await _again_busy(asker, plan)
    figures.stable_crowd, figures.crowd_failures = await _largest_crowd(asker, plan)
    return figures


def _client(url: str) -> httpx.AsyncClient:
    # uvicorn closes after 5 s without a request: who comes back just then would count as a failure.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)


async def _cold_start(asker: Asker, running: Deployment) -> float:
    """From the start of the first process to the first picture in a user's hands."""
    while time.perf_counter() - running.began < START_S:
        running.check()
        if (await asker.ask(order("cold", 0, 128))).picture_s is not None:
            return time.perf_counter() - running.began
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{asker.subject.name}: no picture {START_S:.0f} s after its start")


async def _again(asker: Asker, plan: Plan) -> float:
    wish = order("again", 0, 128)
    await asker.must(wish)
    return statistics.median([await asker.must(wish) for _ in range(plan.cached)])


async def _again_busy(asker: Asker, plan: Plan) -> float:
    """As before, while some others draw one picture after the other."""
    wish = order("again", 1, 128)
    await asker.must(wish)
    done = asyncio.Event()

    async def draw(client: int) -> None:
        number = 0
        while not done.is_set():
            await asker.ask(order(f"beside {client}", number, 128))
            number += 1

    others = [asyncio.create_task(draw(client)) for client in range(plan.beside)]
    await asyncio.sleep(0.5)
    found = statistics.median([await asker.must(wish) for _ in range(plan.cached)])
    done.set()
    await asyncio.gather(*others)
    return found


async def _trace(asker: Asker, plan: Plan, round_: int, bare_s: dict[int, float]) -> list[Attempt]:
    """Open loop: nobody waits for others before asking."""
    mean_s = sum(share * bare_s[size] for size, share in SIZES.items())
    began = time.perf_counter()

    async def arrive(at: float, wish: Order) -> Attempt:
        await asyncio.sleep(at - (time.perf_counter() - began))
        return await asker.ask(wish)

    return list(await asyncio.gather(*(arrive(at, wish) for at, wish in plan.trace(mean_s, round_))))


async def _largest_crowd(asker: Asker, plan: Plan) -> tuple[int, int]:
    """Closed loop: the most clients of whom none fails and 95 % wait no longer than `stable_s`; and all failures."""
    stable, unstable, size, failures = 0, 0, min(4, plan.crowd), 0
    while True:
        attempts = await _crowd(asker, size)
        spent = sorted(attempt.picture_s for attempt in attempts if attempt.picture_s is not None)
        failed = len(attempts) - len(spent)
        failures += failed
        if failed == 0 and spent[int(0.95 * (len(spent) - 1))] <= plan.stable_s:
            stable = size
        else:
            unstable = size
        if stable == plan.crowd or (unstable and unstable <= max(stable * FINER, stable + 1)):
            return stable, failures
        size = min(2 * size, plan.crowd) if not unstable else (stable + unstable) // 2
        if size == 0:
            return 0, failures


async def _crowd(asker: Asker, clients: int) -> list[Attempt]:
    async def client(number: int) -> list[Attempt]:
        return [await asker.ask(order(f"crowd {clients}, {turn}", number, 128)) for turn in range(2)]

    return [attempt for found in await asyncio.gather(*map(client, range(clients))) for attempt in found]


def _width(picture: bytes) -> int:
    """Of a PNG; 0 where it is none."""
    return int(struct.unpack(">I", picture[16:20])[0]) if picture[:8] == b"\x89PNG\r\n\x1a\n" else 0
