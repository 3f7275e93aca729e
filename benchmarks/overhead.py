"""What HTTP, Ray Serve and the queue cost: served pictures against the bare engine loop, in turns in one run.

    python -m benchmarks.overhead [--rounds 5] [--pictures 32] [--json FILE]

Bare is the same engine in this process: encode the prompt, denoise, decode, write a PNG to memory. Served is `make
serve` in processes of its own, asked over HTTP. Both draw the same 128x128 pictures of the embedded model on one CPU
thread; a round measures one after the other, so that a noisy machine disturbs both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from serve.engine import codec
from serve.engine.embeddings import RememberingEncoder
from serve.engine.engine import Engine
from serve.engine.flight import Generation
from serve.engine.open import Placement, open_engine, open_text_encoder
from serve.settings import EMBEDDED_FOLDER, Settings

PROMPT, SIDE_PX, STEPS = "a red fox on a yellow background, number {}", 128, 8
CONCURRENCY = (1, 16)

numbers = itertools.count()  # nobody has encoded such a prompt before

Draw = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement of one kind: pictures per second, and the median seconds of a picture."""

    concurrency: int
    bare_per_s: float
    served_per_s: float
    bare_median_s: float
    served_median_s: float


@dataclass(frozen=True, slots=True)
class Bare:
    engine: Engine
    text_encoder: RememberingEncoder
    files: ThreadPoolExecutor

    async def draw(self, seed: int) -> None:
        loop, prompt = asyncio.get_running_loop(), PROMPT.format(next(numbers))
        (embedding,) = await loop.run_in_executor(self.files, self.text_encoder.encode, [prompt])
        generation = Generation(
            id=f"{seed}",
            height=SIDE_PX,
            width=SIDE_PX,
            steps=STEPS,
            seed=seed,
            embedding=embedding.tensor(),
            negative=None,
            guidance=0.0,
            deadline=self.engine.clock() + 60,
            hard_deadline=False,
            alone=False,
            preview_steps=frozenset(),
        )
        drawn = await self.engine.draw(generation, lambda *_: None)
        await loop.run_in_executor(self.files, codec.encode, drawn.pixels, "png")


@dataclass(frozen=True, slots=True)
class Served:
    port: int
    clients: ThreadPoolExecutor

    async def draw(self, seed: int) -> None:
        await asyncio.get_running_loop().run_in_executor(self.clients, self._ask, seed)

    def _ask(self, seed: int) -> None:
        prompt = PROMPT.format(next(numbers))
        body = json.dumps({"prompt": prompt, "size": f"{SIDE_PX}x{SIDE_PX}", "seed": seed, "cache": "skip"})
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request("POST", "/v1/images/generations", body, {"Accept": "image/png"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {content[:300]!r}")


async def measure(draw: Draw, pictures: int, concurrency: int) -> tuple[float, float]:
    """Pictures per second of a closed loop, and the median seconds of one picture."""
    seeds, seconds = iter(range(pictures)), []

    async def client() -> None:
        for seed in seeds:
            began = time.perf_counter()
            await draw(seed)
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return pictures / (time.perf_counter() - began), statistics.median(seconds)


async def run(bare: Bare, served: Served, rounds: int, pictures: int) -> list[Round]:
    results = []
    kinds: list[Draw] = [bare.draw, served.draw]
    for warming in kinds:
        await measure(warming, 8, 4)
    for number in range(rounds):
        for concurrency in CONCURRENCY:
            figures = {}
            for draw in kinds if number % 2 == 0 else reversed(kinds):
                figures[draw] = await measure(draw, pictures, concurrency)
            (bare_per_s, bare_s), (served_per_s, served_s) = figures[bare.draw], figures[served.draw]
            results.append(Round(concurrency, bare_per_s, served_per_s, bare_s, served_s))
            print(f"round {number + 1} of {rounds}, concurrency {concurrency}: {served_per_s / bare_per_s:.2f}")
    return results


@contextlib.contextmanager
def server(config: str | Path = "config/serve.yaml") -> Iterator[int]:
    """`make serve` on a free port; its port."""
    with tempfile.TemporaryDirectory() as data, socket_port() as port:
        command = [sys.executable, "-m", "deployments.run", str(config), "--port", str(port), "--data", data]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(port, process)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def socket_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    yield port


def wait_until_ready(port: int, process: subprocess.Popen[bytes], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as probe:
            probe.request("GET", "/readyz")
            if probe.getresponse().status == 200:
                return
        time.sleep(0.25)
    raise RuntimeError("the server did not become ready")


def report(results: list[Round], rounds: int, pictures: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.strip() or 'none'}, {platform.machine()}, Python "
        f"{platform.python_version()}; medians of {rounds} rounds of {pictures} pictures, {SIDE_PX} px, {STEPS} steps",
        "",
        "| concurrency | bare, pictures/s | served, pictures/s | served / bare | added to one picture |",
        "|---|---|---|---|---|",
    ]
    for concurrency in CONCURRENCY:
        mine = [result for result in results if result.concurrency == concurrency]
        bare, served = (statistics.median(r.bare_per_s for r in mine), statistics.median(r.served_per_s for r in mine))
        ratio = statistics.median(r.served_per_s / r.bare_per_s for r in mine)
        added = 1e3 * statistics.median(r.served_median_s - r.bare_median_s for r in mine)
        shown = f"{added:.0f} ms" if concurrency == 1 else "-"
        lines.append(f"| {concurrency} | {bare:.2f} | {served:.2f} | {ratio:.2f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = Settings()
    placement = Placement.choose(settings)
    engine = open_engine(settings, EMBEDDED_FOLDER, placement)
    text_encoder = open_text_encoder(settings, EMBEDDED_FOLDER, placement)
    with server() as port, ThreadPoolExecutor(2) as files, ThreadPoolExecutor(max(CONCURRENCY)) as clients:
        bare, served = Bare(engine, text_encoder, files), Served(port, clients)
        results = asyncio.run(run(bare, served, options.rounds, options.pictures))
    engine.stop()
    print(report(results, options.rounds, options.pictures))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
