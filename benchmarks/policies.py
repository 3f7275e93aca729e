"""One seeded trace, replayed for every policy through the real engine loop on this machine's device.

    python -m benchmarks.policies [--model FOLDER] [--load 0.8] [--alpha 3] [--rounds 4] [--requests 40] [--bursty]

By default the embedded model on one CPU thread, at sizes 64/96/128/192 px; with `--model` 512/768/1024/1536 px, at
30/20/40/10 %. The device is measured first, so the load and each deadline (`alpha` times the time alone) are its own.
Each round is another trace, which all policies serve in turn, so that what else the machine does falls on all of them;
even so only their order means something there. `benchmarks.scheduler` is the same without noise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from serve.engine.engine import Engine
from serve.engine.flight import Generation
from serve.engine.memory import CudaMeter, Memory
from serve.engine.open import Placement, load_decoder, load_transformer, start
from serve.engine.schedule import POLICIES, Shape
from serve.errors import DeadlineExceeded
from serve.settings import EMBEDDED, EMBEDDED_FOLDER, Settings

SHARES = (0.3, 0.2, 0.4, 0.1)
SIDES_PX = {True: (64, 96, 128, 192), False: (512, 768, 1024, 1536)}
STEPS, CAPTION_TOKENS = 8, 32
BURSTINESS = 4.0


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    side: int
    allowed: float


@dataclass(frozen=True, slots=True)
class Result:
    policy: str
    attained: float
    median_s: float
    p99_s: float


def solo_seconds(engine: Engine, side: int) -> float:
    tokens = Shape(side, side, (CAPTION_TOKENS,)).tokens
    return engine.times.image_seconds(steps=STEPS, tokens=tokens, rows=1, pixels=side**2)


def trace(solo: dict[int, float], options: argparse.Namespace, seed: int) -> list[Arrival]:
    chance, now = random.Random(seed), 0.0
    mean = sum(share * seconds for share, seconds in zip(SHARES, solo.values(), strict=True))
    gap, drawn = mean / options.load, list[Arrival]()
    for side in chance.choices(list(solo), SHARES, k=options.requests):
        now += chance.gammavariate(1 / BURSTINESS, BURSTINESS * gap) if options.bursty else chance.expovariate(1 / gap)
        drawn.append(Arrival(now, side, options.alpha * solo[side]))
    return drawn


async def replay(engine: Engine, arrivals: Sequence[Arrival], *, hard: bool) -> list[tuple[float, bool]]:
    """Seconds from arrival to pixels, and whether that was in time; what was dropped took for ever."""
    begun = engine.clock()
    embedding = torch.zeros(CAPTION_TOKENS, engine.transformer.embedding_size)

    async def one(number: int, arrival: Arrival) -> tuple[float, bool]:
        await asyncio.sleep(begun + arrival.at - engine.clock())
        generation = Generation(
            id=str(number),
            height=arrival.side,
            width=arrival.side,
            steps=STEPS,
            seed=number,
            embedding=embedding,
            negative=None,
            guidance=0.0,
            deadline=begun + arrival.at + arrival.allowed,
            hard_deadline=hard,
            alone=False,
            preview_steps=frozenset(),
        )
        try:
            await engine.draw(generation, lambda *_: None)
        except DeadlineExceeded:
            return float("inf"), False
        latency = engine.clock() - begun - arrival.at
        return latency, latency <= arrival.allowed

    return await asyncio.gather(*(one(number, arrival) for number, arrival in enumerate(arrivals)))


def result(policy: str, ends: Sequence[tuple[float, bool]]) -> Result:
    latencies = sorted(latency for latency, _ in ends)
    return Result(
        policy=policy,
        attained=sum(met for _, met in ends) / len(ends),
        median_s=statistics.median(latencies),
        p99_s=latencies[int(0.99 * len(latencies))],
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    embedded = options.model == EMBEDDED
    sides = SIDES_PX[embedded]
    torch.set_num_threads(1)
    base = Settings(model=options.model, device=options.device, warmup_sizes_px=sides)
    placement, folder = Placement.choose(base), EMBEDDED_FOLDER if embedded else Path(options.model)
    transformer, decoder = load_transformer(folder, placement), load_decoder(folder, placement)
    meter = CudaMeter(placement.device, None) if placement.device.type == "cuda" else None
    ends: dict[str, list[tuple[float, bool]]] = {policy: [] for policy in POLICIES}
    solo = dict[int, float]()
    for seed in range(options.seed, options.seed + options.rounds):
        for policy in POLICIES:
            settings = base.model_copy(update={"scheduler": base.scheduler.model_copy(update={"policy": policy})})
            engine = start(settings, transformer, decoder, Memory(meter))
            solo = solo or {side: solo_seconds(engine, side) for side in sides}
            ends[policy] += asyncio.run(replay(engine, trace(solo, options, seed), hard=options.hard))
            engine.stop()
    results = [result(policy, ended) for policy, ended in ends.items()]
    for one in results:
        print(f"{one.policy:12} {100 * one.attained:5.1f} %  median {one.median_s:.2f} s  p99 {one.p99_s:.2f} s")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": str(placement),
        "machine": platform.machine(),
        "solo_s": solo,
        "load": options.load,
        "alpha": options.alpha,
        "bursty": options.bursty,
        "requests": options.rounds * options.requests,
        "results": [asdict(one) for one in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--alpha", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=40, help="of one round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bursty", action="store_true")
    parser.add_argument("--hard", action="store_true", help="what is late is dropped, as with deadline_ms")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document = run(options)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
