"""How many jobs a second the Dispatcher takes in, has drawn and finishes, with Ray and the job store around it.

    python -m benchmarks.dispatcher [--jobs 2000] [--concurrency 100] [--gateways 1] [--rounds 3] [--database URL]

The real Dispatcher, its store on disk, and the calls of the product (deployments/remote.py, replica.py, placement.py);
only the engine is not there: a Denoiser and a TextEncoder that answer at once. Callers submit and watch as a Gateway
does, so HTTP is not in it. It prints CPU seconds by process, and where the Dispatcher's go, by py-spy's samples.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ulid import ULID

from deployments.dispatcher import Dispatcher
from deployments.placement import PlacedRouter
from deployments.remote import RemoteService
from deployments.replica import Membership, replica_id
from serve.messages import Generated, ImageRequest, Phase, ReplicaState, StoredImage, Submission, Succeeded, Task
from serve.settings import Settings

SLOTS = 64  # what eight GPUs hold at once
TIMES = {"step_1": {"96": 0.001}, "decode": {"16384": 0.0}}
KINDS = (  # of a stack, the innermost frame that matches decides
    ("job rows to JSON and back", r"pydantic|serve/jobs/record\.py"),
    ("job store", r"sqlalchemy|sqlite|psycopg|serve/jobs/(store|commits|tables)\.py"),
    ("pickling messages", r"cloudpickle|serialization\.py|pickle"),
    ("calls out: routing", r"ray/serve/_private/(router|request_router|common)|ray/serve/handle|placement\.py"),
    ("calls in: Serve's replica", r"ray/serve/"),
    ("Ray core", r"ray/|_raylet|grpc"),
    ("events and jobs", r"serve/jobs/(outbox|job)\.py"),
    ("queue and placing", r"serve/jobs/|deployments/"),
    ("event loop", r"."),
)


class InstantDenoiser:
    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        state = ReplicaState(
            replica_id=replica_id(), role="denoiser", phase=Phase.LOADING, slots=SLOTS, step_times=TIMES
        )
        self._membership = Membership(settings, state)
        self._membership.ready(state, lambda state: state)

    async def generate(self, task: Task, *_embeddings: object) -> Generated:
        request = task.request
        image = StoredImage(
            asset_id=task.asset_id,
            seed=task.seed,
            width=request.width,
            height=request.height,
            format=request.output_format,
            bytes=1,
        )
        return Generated(image=image, started_at=time.time(), encode_s=0, denoise_s=0, decode_s=0)


class InstantTextEncoder:
    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        state = ReplicaState(replica_id=replica_id(), role="text_encoder", phase=Phase.LOADING)
        Membership(settings, state).ready(state, lambda state: state)

    async def encode(self, prompt: str) -> bytes:
        return bytes(100 * len(prompt))


class Callers:
    """As many callers as a Gateway serves, over its one link."""

    async def __init__(self, dispatcher: DeploymentHandle) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._service = RemoteService(dispatcher, replica_id())
        self._service.open()

    async def ready(self) -> bool:
        return (await self._service.status()).ready

    async def run(self, jobs: int, concurrency: int) -> list[float]:
        """Seconds of each job, from being sent to the news of its end."""
        left, seconds = iter(range(jobs)), []

        async def caller() -> None:
            for _ in left:
                began = time.perf_counter()
                await self._one()
                seconds.append(time.perf_counter() - began)

        await asyncio.gather(*(caller() for _ in range(concurrency)))
        return seconds

    async def _one(self) -> None:
        request = ImageRequest(model="z-image-turbo", prompt="a red fox", width=128, height=128, steps=8, seed=1)
        submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=20)
        await self._service.submit(submission)
        events = [event async for event in self._service.watch(submission.job_id)]
        assert isinstance(events[-1], Succeeded)


@contextmanager
def service(settings: Settings, gateways: int) -> Iterator[DeploymentHandle]:
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
    }
    ray.init(address="local", namespace="serve", include_dashboard=False, logging_level="WARNING", log_to_driver=False)
    placed = RequestRouterConfig(request_router_class=f"{PlacedRouter.__module__}.{PlacedRouter.__name__}")
    free: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 100_000}
    text_encoder = serve.deployment(InstantTextEncoder, **free).bind(settings)
    denoiser = serve.deployment(InstantDenoiser, request_router_config=placed, **free).bind(settings)
    parts = ({settings.served_model_name: text_encoder}, {settings.served_model_name: denoiser})
    dispatcher = serve.deployment(Dispatcher, **free).bind(settings, *parts)
    callers = serve.deployment(Callers, num_replicas=gateways, **free).bind(dispatcher)
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(callers, name="zimage", route_prefix=None)
        while not handle.ready.remote().result():
            time.sleep(0.1)
        yield handle
    finally:
        serve.shutdown()
        ray.shutdown()


def round_of(handle: DeploymentHandle, jobs: int, concurrency: int, gateways: int) -> tuple[float, list[float]]:
    """Jobs per second, and the seconds of each."""
    began = time.perf_counter()
    answers = [handle.run.remote(jobs // gateways, concurrency // gateways) for _ in range(gateways)]
    seconds = [second for answer in answers for second in answer.result()]
    return len(seconds) / (time.perf_counter() - began), seconds


def processes() -> dict[str, psutil.Process]:
    """Ours, by the names that Ray gives them."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        name = re.search(
            r"ray::\S*?(\w+)( |$|\.)|/(gcs_server|raylet)$", process.cmdline()[0] if process.cmdline() else ""
        )
        if name:
            found[f"{name[1] or name[3]}"] = process
    return found


@contextmanager
def profiled(process: psutil.Process, into: Path) -> Iterator[None]:
    """py-spy's samples of all its threads that are not idle, until the block is left."""
    program = Path(sys.executable).with_name("py-spy")
    how = ["-f", "raw", "-r", "100", "--nonblocking", "-d", "3600"]
    command = [str(program), "record", "-p", str(process.pid), "-o", str(into), *how]
    sampler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    try:
        yield
    finally:
        sampler.send_signal(2)
        sampler.wait(60)


def shares(samples: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in samples.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        found[_kind(stack.split(";")[::-1])] += int(count)
    return found


def _kind(frames: list[str]) -> str:
    for frame in frames:
        for kind, pattern in KINDS[:-1]:
            if re.search(pattern, frame):
                return kind
    return KINDS[-1][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database")
    parser.add_argument("--samples", type=Path, help="keep py-spy's samples in this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data=Path(folder),
            database=options.database,
            queue={"max_depth": 100_000, "max_depth_per_user": 100_000},
        )
        with service(settings, options.gateways) as handle:
            how = (options.concurrency, options.gateways)
            round_of(handle, 200, *how)
            rates, seconds = [], []
            before = {name: sum(process.cpu_times()[:2]) for name, process in processes().items()}
            for number in range(options.rounds):
                rate, each = round_of(handle, options.jobs, *how)
                rates.append(rate)
                seconds += each
                print(f"round {number + 1}: {rate:.0f} jobs/s", flush=True)
            done = len(seconds)
            print(f"median {statistics.median(rates):.0f} jobs/s; a job {1e3 * statistics.median(seconds):.0f} ms")
            print("\nCPU, ms per job")
            spent = {name: sum(p.cpu_times()[:2]) - before.get(name, 0.0) for name, p in processes().items()}
            for name, cpu in sorted(spent.items(), key=lambda item: -item[1]):
                if cpu > 0.02 * max(spent.values()):
                    print(f"  {name:28} {1e3 * cpu / done:6.2f}")
            samples = options.samples or Path(folder) / "samples"
            with profiled(next(p for name, p in processes().items() if "Dispatcher" in name), samples):
                rate, _ = round_of(handle, options.jobs, *how)
            found = shares(samples)
            print(f"\nwhere the Dispatcher's time goes ({rate:.0f} jobs/s while sampled)")
            for kind, count in found.most_common():
                print(f"  {kind:28} {count / found.total():6.1%}")


if __name__ == "__main__":
    main()
