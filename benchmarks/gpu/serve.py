"""Full-size Z-Image-Turbo end to end on one GPU: this service, its bare engine loop, and stock diffusers.

    python -m benchmarks.gpu.random_weights FOLDER
    python -m benchmarks.gpu.serve FOLDER [--kinds bare served stock] [--sizes 256 1024] [--precision fp8]
        [--haproxy] [--same-prompt] [--json FILE]
    python -m benchmarks.gpu.serve FOLDER --config config/serve.16gb.yaml --one-client [--sizes 512 1024 1536]

Served is `config/serve.gpu.yaml` in processes of its own, asked over HTTP; bare is the same engine in this process
without HTTP, Ray and the job store; stock is ZImagePipeline behind a plain FastAPI server. All three draw the same
pictures (8 steps, JPEG) one after the other in the same run: first one client, then more clients than fit a batch.
Bare gives its pictures the deadlines that the service gives them, as they decide what shares a step. Where a served
picture's time went is what its job says of itself; the rest is HTTP, Ray, the job store and the file. Under many
clients `step_ms` is a step's time on the device, `batch` its pictures, `stepping` the share of the time in steps.
`--config` serves another file as it is, but for the model; `vram_mib` is what of the card was in use after a size.
With `--same-prompt` none is encoded but the first, which tells what sharing the GPU with the text encoder costs.
Bare runs first, so that served finds what it compiled: seconds to ready include the weights, not the compilation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.machine import facts
from benchmarks.overhead import socket_port, wait_until_ready
from serve.settings import Settings

PROMPT = (
    "a photo of a red fox that sits on a yellow wooden bench in front of a blue house, with soft morning light, "
    "falling leaves and a bicycle that leans against the wall"
)
CONFIG = Path("config/serve.gpu.yaml")
ALONE = {256: 8, 512: 8, 1024: 8, 1536: 3, 2048: 2}
SATURATED = {256: 160, 512: 80, 1024: 20}
CLIENTS = 8
STOCK_SHARE = 0.35  # of as many pictures: it takes them one after the other, and takes long
READY_S = 150.0
STEPS = 8
STEP_METRIC = "zimage_step_duration_seconds"
_VRAM = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]

Draw = Callable[[int, int], Awaitable[object]]
Stages = Callable[[int], dict[str, float]]
Steps = Callable[[], tuple[float, float]]  # seconds and number of all steps so far
_seeds = count(1)


@dataclass(frozen=True, slots=True)
class Figure:
    """Of one kind and side: seconds of a picture with one client; pictures per second with many."""

    kind: str
    side: int
    median_s: float
    worst_s: float
    per_s: float | None
    stages_ms: dict[str, float] | None = None
    steps: dict[str, float] | None = None
    vram_mib: int | None = None


Figures = list[Figure]


@dataclass(frozen=True, slots=True)
class Inside:
    """What is known of pictures beyond what their clients see."""

    stages: Stages
    steps: Steps


def numbered(seed: int) -> str:
    """Nobody has encoded it before."""
    return f"{PROMPT}, number {seed}"


def prompts(options: argparse.Namespace) -> Callable[[int], str]:
    return (lambda _: PROMPT) if options.same_prompt else numbered


async def measure(kind: str, options: argparse.Namespace, draw: Draw, share: float, inside: Inside | None) -> Figures:
    figures = []
    for side in options.sizes:
        await _draw_all(draw, side, 3, 1)  # the first of a shape loads and records kernels
        pictures = max(2, round(share * ALONE[side]))
        seconds, _ = await _draw_all(draw, side, pictures, 1)
        spent = inside.stages(pictures) if inside else None
        per_s, stepped = None, None
        if side in SATURATED and not options.one_client:
            many = round(share * SATURATED[side])
            await _draw_all(draw, side, CLIENTS, CLIENTS)
            before = inside.steps() if inside else None
            _, took = await _draw_all(draw, side, many, CLIENTS)
            per_s = many / took
            stepped = _stepped(before, inside.steps(), many, took) if inside and before else None
        figures.append(Figure(kind, side, median(seconds), max(seconds), per_s, spent, stepped, vram_mib()))
        print(f"{time.strftime('%X')} {figures[-1]}", flush=True)
    return figures


def vram_mib() -> int | None:
    """In use on the first GPU, by whomever."""
    if shutil.which(_VRAM[0]) is None:
        return None
    return int(subprocess.run(_VRAM, capture_output=True, text=True, check=True).stdout.split()[0])


def _stepped(before: tuple[float, float], after: tuple[float, float], pictures: int, took: float) -> dict[str, float]:
    seconds, count = (later - earlier for earlier, later in zip(before, after, strict=True))
    return {"step_ms": 1e3 * seconds / count, "batch": STEPS * pictures / count, "stepping": seconds / took}


async def _draw_all(draw: Draw, side: int, pictures: int, clients: int) -> tuple[list[float], float]:
    """Seconds of each, and of all, in a closed loop."""
    left, seconds = iter(range(pictures)), []

    async def client() -> None:
        for _ in left:
            began = time.perf_counter()
            await draw(side, next(_seeds))
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds, time.perf_counter() - began


def ask(port: int, side: int, seed: int, prompt: str) -> None:
    body = json.dumps({"prompt": prompt, "size": f"{side}x{side}", "seed": seed})
    headers = {"Accept": "image/jpeg", "Content-Type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.request("POST", "/v1/images/generations", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200 or content[:2] != b"\xff\xd8":
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")


def over_http(
    kind: str, options: argparse.Namespace, port: int, share: float = 1.0, inside: Inside | None = None
) -> Figures:
    prompt_of = prompts(options)
    with ThreadPoolExecutor(CLIENTS) as clients:

        async def draw(side: int, seed: int) -> None:
            await asyncio.get_running_loop().run_in_executor(clients, ask, port, side, seed, prompt_of(seed))

        return asyncio.run(measure(kind, options, draw, share, inside))


def stages_of_jobs(port: int) -> Stages:
    """Medians of what the last jobs say of themselves, in milliseconds."""

    def stages(pictures: int) -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{port}/v1/jobs?limit={pictures}") as answer:
            jobs = json.load(answer)["data"]
        return {name: median(job["timings"][name] for job in jobs) for name in jobs[0]["timings"]}

    return stages


def steps_of_metrics(port: int) -> Steps:
    def steps() -> tuple[float, float]:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples]
        seconds, count = (
            sum(sample.value for sample in samples if sample.name == f"{STEP_METRIC}_{part}")
            for part in ("sum", "count")
        )
        return seconds, count

    return steps


def bare(options: argparse.Namespace, ready: dict[str, float]) -> Figures:
    """In a process of its own, which gives back the device's memory when it ends."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        figures, ready["bare"] = pool.submit(_bare, options).result()
    return figures


def _bare(options: argparse.Namespace) -> tuple[Figures, float]:
    began = time.monotonic()
    from benchmarks.gpu.bare import BareLoop  # and with it torch, which takes its time

    with contextlib.closing(BareLoop(Settings.model_validate(settings_of(options)), options.folder)) as loop:
        seconds = time.monotonic() - began
        prompt_of = prompts(options)

        async def draw(side: int, seed: int) -> None:
            await loop.draw(side, seed, prompt_of(seed))

        return asyncio.run(measure("bare", options, draw, 1.0, Inside(loop.stages, loop.steps))), seconds


@contextlib.contextmanager
def process(*command: str) -> Iterator[tuple[int, float]]:
    """A server on a free port, and the seconds until it was ready."""
    with socket_port() as port:
        began = time.monotonic()
        started = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port)])
        try:
            wait_until_ready(port, started, READY_S)
            yield port, time.monotonic() - began
        finally:
            started.send_signal(signal.SIGTERM)
            started.wait(60)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What is served, in the words of the config file."""
    return {
        "model": str(options.folder),
        "device": "cuda",
        "precision": options.precision,
        "warmup_sizes_px": options.sizes,
    }


@contextlib.contextmanager
def config(file: Path, args: dict[str, Any], denoisers: int | None = None) -> Iterator[tuple[str, str]]:
    """The file with `args` in it, perhaps another number of Denoisers, and a folder for the data."""
    parsed = yaml.safe_load(file.read_text())
    parsed["applications"][0]["args"] |= args
    for deployment in parsed["applications"][0]["deployments"]:
        if denoisers is not None and deployment["name"] == "Denoiser":
            deployment["num_replicas"] = denoisers
    with tempfile.TemporaryDirectory() as scratch:
        rendered = Path(scratch) / "serve.yaml"
        rendered.write_text(yaml.safe_dump(parsed))
        yield str(rendered), str(Path(scratch) / "data")


def served(options: argparse.Namespace, ready: dict[str, float]) -> Figures:
    args = {"model": str(options.folder)} if options.config else settings_of(options)
    with config(options.config or CONFIG, args) as (file, data):
        command = ("deployments.run", file, "--data", data)
        with process(*command) as (port, seconds):
            ready["served"] = seconds
            inside = Inside(stages_of_jobs(port), steps_of_metrics(port))
            return over_http("served", options, port, inside=inside)


def stock(options: argparse.Namespace, ready: dict[str, float]) -> Figures:
    with process("benchmarks.gpu.stock_server", str(options.folder)) as (port, seconds):
        ready["stock"] = seconds
        return over_http("stock", options, port, STOCK_SHARE)


def table(figures: Figures, ready: dict[str, float]) -> str:
    by: dict[tuple[str, int], Figure] = {(figure.kind, figure.side): figure for figure in figures}
    kinds = list(dict.fromkeys(figure.kind for figure in figures))
    lines = [
        "| | " + " | ".join(f"{kind}: s (worst)" for kind in kinds) + " | " + " | ".join(f"{k}: img/s" for k in kinds),
        "|---" * (1 + 2 * len(kinds)),
    ]
    sizes = list(dict.fromkeys(figure.side for figure in figures))
    for side in sizes:
        mine = [by[kind, side] for kind in kinds]
        alone = [f"{figure.median_s:.3f} ({figure.worst_s:.3f})" for figure in mine]
        many = ["-" if figure.per_s is None else f"{figure.per_s:.2f}" for figure in mine]
        lines.append(f"| {side}² | " + " | ".join(alone + many))
    ratios: list[tuple[str, str]] = [("served", "bare"), ("served", "stock")]
    for one, other in ratios:
        if one in kinds and other in kinds:
            each = [
                f"{side}² {ours / theirs:.3f}"
                for side in sizes
                if (ours := by[one, side].per_s) and (theirs := by[other, side].per_s)
            ]
            if each:
                lines.append(f"{one} / {other}, img/s: " + ", ".join(each))
    return "\n".join([*(f"{line} |" if line.startswith("|") else line for line in lines), f"seconds to ready: {ready}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=["bare", "served", "stock"], default=["bare", "served", "stock"])
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(ALONE), default=list(ALONE))
    parser.add_argument("--precision", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--config", type=Path, help=f"another than {CONFIG}, served as it is")
    parser.add_argument("--one-client", action="store_true", help="not also more than fit a batch")
    parser.add_argument("--haproxy", action="store_true", help="Ray Serve's HAProxy mode instead of its Python proxy")
    parser.add_argument("--same-prompt", action="store_true", help="of all pictures: it is encoded once")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if options.haproxy else "0"
    ready: dict[str, float] = {}
    figures: Figures = []
    for kind in options.kinds:
        figures += {"bare": bare, "served": served, "stock": stock}[kind](options, ready)
        if options.json:
            result: dict[str, Any] = facts() | {"ready_s": ready, "figures": [asdict(figure) for figure in figures]}
            options.json.write_text(json.dumps(result, indent=1))
    print(table(figures, ready))


if __name__ == "__main__":
    main()
