"""What the way to the model costs: one trivial model behind NVIDIA Triton and behind us, asked by the same client.

    python3.11 -m venv /tmp/triton && /tmp/triton/bin/pip install nvidia-pytriton
    python -m benchmarks.protocol_overhead --triton /tmp/triton/bin/python [--rounds 5] [--requests 300] [--json FILE]

The model makes a 64x64 picture of one colour from a prompt; `tritonclient` asks for `generated_image` in binary. Triton
computes it in its Python backend (nvidia-pytriton). Ours is the whole product but its engine: admission, a job on disk
before and after, a PNG encoded, stored, read back and decoded; in one process, and as deployed on Ray Serve. A round
measures all of them, one after the other. Triton's Python must be one whose patch release its backend was built for:
Debian's 3.11.2 is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

from benchmarks.machine import facts
from benchmarks.overhead import socket_port

CONCURRENCY = (1, 16)
START_S = 180.0
TOKEN = {"triton-access-token": "benchmark"}  # of triton_echo.py; ours counts for everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where a model is asked."""

    name: str
    url: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`inside_ms`, `queue_ms` and `compute_ms` are what the server itself counts of a request, on average."""

    way: str
    concurrency: int
    per_s: float
    p50_ms: float
    p99_ms: float
    inside_ms: float
    queue_ms: float
    compute_ms: float


def question(prompt: str) -> triton.InferInput:
    made = triton.InferInput("prompt", [1, 1], "BYTES")
    made.set_data_from_numpy(np.array([[prompt]], dtype=object))
    return made


async def measure(way: Way, concurrency: int, requests: int) -> Measured:
    """A closed loop of so many clients over one connection pool."""
    left, seconds = iter(range(requests)), []
    wanted = [triton.InferRequestedOutput("generated_image")]
    async with triton_aio.InferenceServerClient(way.url, conn_limit=concurrency) as client:

        async def one() -> None:
            for number in left:
                began = time.perf_counter()
                answer = await client.infer(way.model, [question(f"number {number % 8}")], outputs=wanted)
                seconds.append(time.perf_counter() - began)
                assert answer.as_numpy("generated_image").shape == (1, 64, 64, 3)

        before = await counted(client, way.model)
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(concurrency)))
        took_s = time.perf_counter() - began
        after = await counted(client, way.model)
    spent = {name: (after[name] - before[name]) / requests / 1e6 for name in after}
    return Measured(
        way=way.name,
        concurrency=concurrency,
        per_s=requests / took_s,
        p50_ms=1e3 * statistics.median(seconds),
        p99_ms=1e3 * statistics.quantiles(seconds, n=100)[98],
        inside_ms=spent["success"],
        queue_ms=spent["queue"],
        compute_ms=spent["compute_input"] + spent["compute_infer"] + spent["compute_output"],
    )


async def counted(client: triton_aio.InferenceServerClient, model: str) -> dict[str, int]:
    (entry,) = (await client.get_inference_statistics(model, headers=TOKEN))["model_stats"]
    return {name: stage["ns"] for name, stage in entry["inference_stats"].items()}


@contextmanager
def started(name: str, model: str, port: int, *command: str) -> Iterator[Way]:
    way = Way(name=name, url=f"127.0.0.1:{port}", model=model)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(way, process)
        yield way
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(way: Way, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    client = triton.InferenceServerClient(way.url)
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.is_model_ready(way.model):
                return
        except OSError:
            pass
        time.sleep(0.25)
    raise RuntimeError(f"{way.name} did not become ready")


def run(python: str | None, ray: bool, rounds: int, requests: int) -> list[Measured]:
    measured = []
    with ExitStack() as stack:
        enter, data = stack.enter_context, Path(stack.enter_context(tempfile.TemporaryDirectory()))
        echo = (sys.executable, "-m", "benchmarks.echo", "--data")
        ways = []
        if python is not None:
            port = enter(socket_port())
            ways.append(
                enter(started("NVIDIA Triton", "echo", port, python, "benchmarks/triton_echo.py", "--port", str(port)))
            )
        ours: list[tuple[str, str, tuple[str, ...]]] = [("ours, one process", "one", ())]
        if ray:
            ours.append(("ours, Ray Serve", "ray", ("--ray",)))
        for name, folder, how in ours:
            port = enter(socket_port())
            (data / folder).mkdir()
            command = (*echo, str(data / folder), "--port", str(port), *how)
            ways.append(enter(started(name, "z-image-turbo", port, *command)))
        for way in ways:
            asyncio.run(measure(way, 4, 40))
        for _ in range(rounds):
            for concurrency in CONCURRENCY:
                for way in ways:
                    measured.append(asyncio.run(measure(way, concurrency, requests)))
                    print(measured[-1], flush=True)
    return measured


def report(measured: list[Measured], rounds: int, requests: int) -> str:
    def middle(way: str, concurrency: int, figure: str) -> float:
        mine = [one for one in measured if (one.way, one.concurrency) == (way, concurrency)]
        return float(statistics.median(getattr(one, figure) for one in mine))

    ways = list(dict.fromkeys(one.way for one in measured))
    first = ways[0]
    lines = [
        f"Medians of {rounds} rounds of {requests} requests.",
        "",
        "| | p50, 1 client | times the first | of it counted by the server | of that queue | of that compute "
        "| requests/s, 16 clients | of the first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        p50, per_s = middle(way, 1, "p50_ms"), middle(way, 16, "per_s")
        inside, queue, compute = (middle(way, 1, name) for name in ("inside_ms", "queue_ms", "compute_ms"))
        lines.append(
            f"| {way} | {p50:.1f} ms | {p50 / middle(first, 1, 'p50_ms'):.1f} | {inside:.1f} ms | {queue:.1f} ms "
            f"| {compute:.1f} ms | {per_s:.0f} | {per_s / middle(first, 16, 'per_s'):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", help="a Python that has nvidia-pytriton; left out: only ours is measured")
    parser.add_argument("--no-ray", action="store_true", help="only in one process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measured = run(asked.triton, not asked.no_ray, asked.rounds, asked.requests)
    print(report(measured, asked.rounds, asked.requests))
    if asked.json:
        found = {"facts": facts(), "measured": [asdict(one) for one in measured]}
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
