"""How true the ETA is: what each job is told when it is accepted, against the time that it really takes.

    python -m benchmarks.eta [--jobs 200] [--backlog 24] [--json FILE]

The whole service runs in this process with the embedded model on one CPU thread. Some users keep a steady backlog of
pictures of mixed sizes, steps and numbers; whenever a job is done its user sends the next. The first and the last
`--backlog` jobs, while the load builds up and drains, are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ulid import ULID

from serve.jobs.service import ImageService
from serve.local import open_service
from serve.messages import ImageRequest, Queued, Submission, Succeeded, Terminal
from serve.settings import Settings

PROMPT, PROMPT_TOKENS = "a red fox on a yellow background", 20
SIDES_PX, STEPS, IMAGES = (64, 128, 192, 256), (4, 8, 12), (1, 1, 1, 2)
USERS = 6


@dataclass(frozen=True, slots=True)
class Told:
    """Seconds from acceptance to the last picture, as told and as they were."""

    position: int
    eta_s: float
    real_s: float

    @property
    def error(self) -> float:
        return abs(self.eta_s - self.real_s) / self.real_s


def requests_of(seed: int) -> Iterator[ImageRequest]:
    chance = random.Random(seed)
    for number in range(1 << 30):
        side = chance.choice(SIDES_PX)
        yield ImageRequest(
            model="z-image-turbo",
            prompt=PROMPT,
            width=side,
            height=side,
            steps=chance.choice(STEPS),
            n=chance.choice(IMAGES),
            seed=1000 * number,
        )


async def draw(service: ImageService, request: ImageRequest, user: str) -> Told:
    submission = Submission(
        job_id=str(ULID()), request=request, prompt_tokens=PROMPT_TOKENS, user=user, priority="standard"
    )
    accepted = time.perf_counter()
    await service.submit(submission)
    told: Queued | None = None
    async for event in service.watch(submission.job_id):
        if told is None and isinstance(event, Queued):
            told = event
        if isinstance(event, Terminal) and not isinstance(event, Succeeded):
            raise RuntimeError(f"a job did not succeed: {event}")
    if told is None or told.eta_seconds is None:
        raise RuntimeError(f"job {submission.job_id} was told no ETA")
    return Told(told.position, told.eta_seconds, time.perf_counter() - accepted)


async def run(jobs: int, backlog: int, seed: int) -> list[Told]:
    """The steady part, in order of acceptance."""
    told: dict[int, Told] = {}
    requests = zip(range(jobs + 2 * backlog), requests_of(seed), strict=False)

    async def client(number: int) -> None:
        for job, request in requests:
            told[job] = await draw(service, request, f"user {number % USERS}")

    with tempfile.TemporaryDirectory() as data:
        async with open_service(Settings(data=Path(data))) as service, asyncio.TaskGroup() as clients:
            for number in range(backlog):
                clients.create_task(client(number))
    return [told[job] for job in range(backlog, backlog + jobs)]


def report(told: list[Told], backlog: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    errors = [100 * job.error for job in told]
    bias = 100 * (statistics.median(job.eta_s / job.real_s for job in told) - 1)
    nine_tenths = statistics.quantiles(errors, n=10)[-1]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.strip() or 'none'}, {platform.machine()}, Python "
        f"{platform.python_version()}; {len(told)} jobs over a backlog of {backlog}, of "
        f"{statistics.median(job.real_s for job in told):.1f} s each\n"
        f"median absolute error of the ETA: {statistics.median(errors):.1f} %"
        f" (nine tenths below {nine_tenths:.0f} %; told / real - 1 is {bias:+.0f} % in the median)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--backlog", type=int, default=24)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    told = asyncio.run(run(options.jobs, options.backlog, options.seed))
    print(report(told, options.backlog))
    if options.json:
        options.json.write_text(json.dumps([asdict(job) for job in told], indent=1))


if __name__ == "__main__":
    main()
