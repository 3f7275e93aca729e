"""Hours of mixed load in minutes: does anything grow that should not?

    make soak MINUTES=30        or: python -m benchmarks.soak --minutes 30 [--json FILE]

Starts the product with the embedded model and lets users of every kind at it: some draw and wait, some repeat what was
drawn, watch streams and leave in the middle, cancel, browse, delete, send nonsense, or are refused. First they warm it
up, for a third of the time, or twelve minutes where there are as many: caches fill, allocators find their size, and for
ten minutes the Dispatcher remembers what has ended. Then everything comes to rest, is counted, goes on for the other
part, and comes to rest again. Embeddings are remembered in a few megabytes only, so that these are full by then. File
handles, threads and asyncio tasks of every process must be as many at rest as before; resident memory is read every
few seconds, and the straight line through it must not rise by more than the tolerance. Exits with 1 when something
rises, or when a job was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml

from benchmarks.machine import facts
from benchmarks.overhead import server

SAMPLE_S, REST_S, WARM_S = 5.0, 20.0, 720.0
KINDS = ("Gateway", "Dispatcher", "Denoiser", "TextEncoder", "ProxyActor", "ServeController")
TOLERANCES = {"MB": 12.0, "files": 6.0, "threads": 3.0, "tasks": 5.0}  # or a twentieth of what there is, where more
ENDED = ("succeeded", "failed", "canceled", "expired")
REPEATED = 20
EMBEDDING_BYTES = 4 << 20
PROBE = Path(__file__).parent / "probe"

Act = Callable[[httpx.AsyncClient, random.Random], Awaitable[int]]


Counts = dict[tuple[str, str], float]  # by kind of process, and quantity


@dataclass
class Watch:
    """`mb` is resident memory while there is load; `before` and `after` it, everything at rest."""

    tasks_in: Path
    at: list[float] = field(default_factory=list)
    mb: dict[str, list[float]] = field(default_factory=dict)
    before: Counts = field(default_factory=dict)
    after: Counts = field(default_factory=dict)

    async def run(self) -> None:
        while True:
            self.at.append(time.monotonic())
            for kind in KINDS:
                if found := _processes(kind):
                    mb = sum(process.memory_info().rss for process in found) / 1e6
                    self.mb.setdefault(kind, []).append(mb)
            await asyncio.sleep(SAMPLE_S)

    async def at_rest(self) -> Counts:
        """Connections have closed, and what was cancelled has ended."""
        await asyncio.sleep(REST_S)
        counts: Counts = {}
        for kind in KINDS:
            if found := _processes(kind):
                counts[kind, "files"] = sum(process.num_fds() for process in found)
                counts[kind, "threads"] = sum(process.num_threads() for process in found)
                counts[kind, "tasks"] = sum(self._tasks(process.pid) for process in found)
        return counts

    def _tasks(self, pid: int) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.tasks_in / str(pid)).read_text())
        return 0


@dataclass(frozen=True, slots=True)
class Line:
    """What a quantity was, and by how much it rose in the time that counts."""

    process: str
    quantity: str
    was: float
    rise: float
    per_hour: float

    @property
    def flat(self) -> bool:
        return self.rise <= max(TOLERANCES[self.quantity], 0.05 * self.was)


def lines(watch: Watch) -> list[Line]:
    at = np.array(watch.at) - watch.at[0]
    hours = float(at[-1]) / 3600
    found = []
    for kind, mb in watch.mb.items():
        rise = float(np.polyfit(at[: len(mb)], np.array(mb), 1)[0]) * float(at[-1])
        found.append(Line(kind, "MB", float(np.mean(mb)), rise, rise / hours))
    for (kind, quantity), was in watch.before.items():
        rise = watch.after.get((kind, quantity), 0.0) - was
        found.append(Line(kind, quantity, was, rise, rise / hours))
    return sorted(found, key=lambda line: KINDS.index(line.process))


# --- users


async def draw(client: httpx.AsyncClient, dice: random.Random) -> int:
    body = {"prompt": f"a red fox, number {dice.random()}", "size": dice.choice(("64x64", "128x128", "96x128"))}
    return (await client.post("/v1/images/generations", json=body)).status_code


async def repeat(client: httpx.AsyncClient, dice: random.Random) -> int:
    body = {"prompt": "a cat on a red background", "size": "64x64", "seed": dice.randrange(REPEATED)}
    return (await client.post("/v1/images/generations", json=body)).status_code


async def stream(client: httpx.AsyncClient, dice: random.Random) -> int:
    """To the end, or not."""
    body = {"prompt": f"a robot, number {dice.random()}", "size": "64x64", "stream": True, "partial_images": 2}
    async with client.stream("POST", "/v1/images/generations", json=body) as answer:
        async for _ in answer.aiter_bytes():
            if dice.random() < 0.2:
                break
        return answer.status_code


async def leave(client: httpx.AsyncClient, dice: random.Random) -> int:
    """In the middle of a picture, which is then nobody's."""
    with contextlib.suppress(httpx.TimeoutException):
        body = {"prompt": f"a rocket, number {dice.random()}", "size": "256x256", "num_inference_steps": 50}
        return (await client.post("/v1/images/generations", json=body, timeout=1 + dice.random())).status_code
    return 499


async def cancel(client: httpx.AsyncClient, dice: random.Random) -> int:
    body = {"prompt": f"a cat, number {dice.random()}", "size": "128x128", "num_inference_steps": 40}
    answer = await client.post("/v1/jobs", json=body)
    if answer.status_code != 202:
        return answer.status_code
    await asyncio.sleep(dice.random())
    return (await client.post(f"/v1/jobs/{answer.json()['id']}/cancel")).status_code


async def browse(client: httpx.AsyncClient, dice: random.Random) -> int:
    jobs = (await client.get("/v1/jobs", params={"limit": 50, "status": "succeeded"})).json()["data"]
    for image in dice.choice(jobs)["result"]["images"] if jobs else []:
        await client.get(image["url"])
    return (await client.get(dice.choice(("/v1/queue", "/v1/stats", "/v1/assets", "/metrics", "/")))).status_code


async def delete(client: httpx.AsyncClient, dice: random.Random) -> int:
    jobs = (await client.get("/v1/jobs", params={"limit": 100, "status": "succeeded"})).json()["data"]
    if len(jobs) < 100:
        return 204
    return (await client.delete(f"/v1/jobs/{dice.choice(jobs)['id']}")).status_code


async def babble(client: httpx.AsyncClient, dice: random.Random) -> int:
    body = dice.choice((b"{", b'{"prompt": ""}', b'{"prompt": "x", "size": "1x1"}', b'{"prompt": 7}'))
    return (await client.post("/v1/images/generations", content=body)).status_code


async def burst(client: httpx.AsyncClient, dice: random.Random) -> int:
    """More than the queue takes of one."""
    body = {
        "prompt": "a burst",
        "size": "64x64",
        "num_inference_steps": 4,
        "priority": "batch",
        "seed": dice.randrange(1 << 20),
    }
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=body) for _ in range(40)))
    await asyncio.sleep(10)
    return max(answer.status_code for answer in answers)


USERS: tuple[Act, ...] = (draw, draw, repeat, repeat, stream, leave, cancel, browse, delete, babble, burst)
EXPECTED = {200, 202, 204, 404, 400, 409, 499, 503}


async def user(act: Act, url: str, until: float, seed: int, answers: Counter[str]) -> None:
    dice = random.Random(seed)
    while time.monotonic() < until:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            for _ in range(10):
                status = await act(client, dice)
                answers[f"{act.__name__} {status}"] += 1
                if status not in EXPECTED:
                    raise RuntimeError(f"{act.__name__} was answered with {status}")
                await asyncio.sleep(dice.expovariate(2))
                if time.monotonic() > until:
                    return


async def unfinished(url: str) -> int:
    """Jobs that have not ended, when all had time for it."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for _ in range(240):
            queue = (await client.get("/v1/queue")).json()
            if not queue["depth"] + queue["running"]:
                return 0
            await asyncio.sleep(0.5)
        return int(queue["depth"] + queue["running"])


async def soak(port: int, minutes: float, tasks_in: Path) -> tuple[Watch, Counter[str], int]:
    url, answers, watch = f"http://127.0.0.1:{port}", Counter[str](), Watch(tasks_in)
    seconds = 60 * minutes
    warming_s = max(seconds / 3, min(WARM_S, seconds / 2))
    await load(url, warming_s, answers)
    left = await unfinished(url)
    watch.before = await watch.at_rest()
    watching = asyncio.create_task(watch.run())
    await load(url, seconds - warming_s, answers)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    left += await unfinished(url)
    watch.after = await watch.at_rest()
    return watch, answers, left


async def load(url: str, seconds: float, answers: Counter[str]) -> None:
    until = time.monotonic() + seconds
    await asyncio.gather(*(user(act, url, until, seed, answers) for seed, act in enumerate(USERS)))


def _processes(kind: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = "".join(child.cmdline())
            if title.startswith("ray::") and kind in title and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def report(minutes: float, found: list[Line], answers: Counter[str], left: int) -> str:
    machine = facts()
    rows = [
        f"| {line.process} | {line.quantity} | {line.was:.0f} | {line.rise:+.1f} | {line.per_hour:+.1f} | "
        f"{'flat' if line.flat else 'RISES'} |"
        for line in found
    ]
    return "\n".join(
        [
            f"{machine['date'][:10]}, commit {machine['commit']}, {machine['cpu']}, {os.cpu_count()} cores, Python "
            f"{machine['python']}; {minutes:g} minutes, {sum(answers.values())} acts, load average at the end "
            f"{os.getloadavg()[0]:.1f}; {left} jobs have not ended",
            "",
            "| process | quantity | was | rise | per hour | |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            ", ".join(f"{what}: {count}" for what, count in sorted(answers.items())),
        ]
    )


def configured(folder: Path) -> Path:
    """The shipped configuration, but with a cache that would go on filling for hours."""
    config = yaml.safe_load(Path("config/serve.yaml").read_text())
    config["applications"][0]["args"]["cache"] = {"embedding_bytes": EMBEDDING_BYTES}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as tasks_in:
        os.environ["TASKS_IN"] = tasks_in
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROBE), os.environ.get("PYTHONPATH")]))
        with server(configured(Path(tasks_in))) as port:
            watch, answers, left = asyncio.run(soak(port, options.minutes, Path(tasks_in)))
    found = lines(watch)
    print(report(options.minutes, found, answers, left))
    if options.json:
        result: dict[str, Any] = {"lines": [asdict(line) for line in found], "answers": dict(answers), "left": left}
        options.json.write_text(json.dumps(facts() | result, indent=1))
    sys.exit(1 if left or not all(line.flat for line in found) else 0)


if __name__ == "__main__":
    main()
