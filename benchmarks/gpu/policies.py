"""Seeded traces, replayed for every policy through the real engine with full-size Z-Image-Turbo on one GPU.

    python -m benchmarks.gpu.policies [--loads 0.5 0.8 1.0] [--requests 40] [--sizes 512 768 1024 1536] [--json FILE]
    python -m benchmarks.gpu.policies --until 0.95 --loads 1.0 0.9 0.8 0.7 0.6 0.5 0.4 0.3 --arrivals Poisson --alphas 5

Random weights of full size, 8 steps, four sizes at 30/20/40/10 %; Poisson arrivals and bursts. The engine measures
itself first, so a load of 1 is what it can draw; its table, in the form of `benchmarks/h200_steps.json`, goes into the
result. Deadlines are alpha times the time alone; only `edf` looks at them, so the others are replayed once and judged
by every alpha. A request that is late is a miss; goodput is what was in time, per second of the traces. `--seeds` of
them are replayed one after another and judged as one. With `--until` loads are tried in the order given, and a policy
is done with the first at which this share is on time: from high to low, that is its goodput at this share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.gpu import random_weights
from benchmarks.machine import facts
from benchmarks.policies import Arrival, replay, solo_seconds, trace
from serve.engine.engine import Engine
from serve.engine.memory import CudaMeter, Memory
from serve.engine.open import Placement, decoder_of, graphs_on, start, take_over
from serve.engine.schedule import POLICIES
from serve.engine.turns import Turns
from serve.settings import Settings

ALPHAS = (3.0, 5.0)
ARRIVALS = ("Poisson", "bursty")
TABLE_PX = (256, 512, 768, 1024, 1536, 2048)


@dataclass(frozen=True, slots=True)
class Replay:
    arrivals: str
    load: float
    alpha: float
    policy: str
    attained: float
    goodput_per_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Asked:
    arrivals: str
    load: float
    alphas: tuple[float, ...]
    requests: int
    seeds: range

    def traces(self, solo: dict[int, float], alpha: float) -> list[list[Arrival]]:
        drawn = argparse.Namespace(
            load=self.load, alpha=alpha, requests=self.requests, bursty=self.arrivals == "bursty"
        )
        return [trace(solo, drawn, seed) for seed in self.seeds]


def judged(asked: Asked, alpha: float, policy: str, traces: list[list[Arrival]], latencies: list[float]) -> Replay:
    arrivals = [arrival for drawn in traces for arrival in drawn]
    met = sum(latency <= arrival.allowed for latency, arrival in zip(latencies, arrivals, strict=True))
    seconds = sum(drawn[-1].at - drawn[0].at for drawn in traces)
    p99 = sorted(latencies)[int(0.99 * len(latencies))]
    return Replay(asked.arrivals, asked.load, alpha, policy, met / len(arrivals), met / seconds, p99)


def opened(sizes: list[int]) -> Engine:
    settings = Settings(device="cuda", warmup_sizes_px=tuple(sorted({*sizes, *TABLE_PX})))
    placement = Placement.choose(settings)
    graphs = graphs_on(placement.device)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    transformer = take_over(random_weights.build("transformer"), scheduler, placement, graphs)
    decoder = decoder_of(random_weights.build("vae"), placement, graphs)
    return start(settings, transformer, decoder, Memory(CudaMeter(placement.device, None)))


def run_by(engine: Engine, policy: str) -> None:
    """While it has nothing to do."""
    max_batch = Settings().scheduler.max_batch
    engine.policy = POLICIES[policy](engine.times, max_batch)
    engine._turns = Turns(engine.policy, engine.times, engine.split_s)


def replays(engine: Engine, solo: dict[int, float], asked: Asked, policy: str) -> Iterator[Replay]:
    latencies = list[float]()
    for alpha in asked.alphas:
        traces = asked.traces(solo, alpha)
        if not latencies or policy == "edf":
            run_by(engine, policy)
            ends = [asyncio.run(replay(engine, drawn, hard=False)) for drawn in traces]
            latencies = [seconds for ended in ends for seconds, _ in ended]
        yield judged(asked, alpha, policy, traces, latencies)


def at_best(results: Iterable[Replay], share: float) -> dict[str, dict[str, float]]:
    """The most with at least this share on time, by arrivals and alpha, then by policy."""
    best: dict[str, dict[str, float]] = {}
    for one in results:
        if one.attained >= share:
            of_kind = best.setdefault(f"{one.arrivals}, alpha {one.alpha:g}", {})
            of_kind[one.policy] = max(of_kind.get(one.policy, 0.0), one.goodput_per_s)
    return best


def run(engine: Engine, solo: dict[int, float], options: argparse.Namespace) -> Iterator[Replay]:
    """Load after load, every policy by turns."""
    seeds = range(options.seed, options.seed + options.seeds)
    for arrivals in options.arrivals:
        left = dict.fromkeys(options.policies, tuple(options.alphas))
        for load, policy in product(options.loads, options.policies):
            if not left[policy]:
                continue
            asked = Asked(arrivals, load, left[policy], options.requests, seeds)
            for one in replays(engine, solo, asked, policy):
                yield one
                if options.until and one.attained >= options.until:
                    left[policy] = tuple(alpha for alpha in left[policy] if alpha != one.alpha)


def line(one: Replay) -> str:
    measured = f"{100 * one.attained:6.1f} %  {one.goodput_per_s:.2f}/s  p99 {one.p99_s:.1f} s"
    return f"{time.strftime('%X')} {one.arrivals:8}{one.policy:12}{one.load:5} {one.alpha} {measured}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.0])
    parser.add_argument("--sizes", type=int, nargs=4, default=[512, 768, 1024, 1536])
    parser.add_argument("--requests", type=int, default=40, help="of one trace")
    parser.add_argument("--seed", type=int, default=0, help="of the first trace")
    parser.add_argument("--seeds", type=int, default=1, help="traces for each load")
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=ARRIVALS)
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--until", type=float, help="the share on time at which a policy is done")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = opened(options.sizes)
    solo = {side: solo_seconds(engine, side) for side in options.sizes}
    (warming,) = Asked("Poisson", 2.0, (5.0,), options.requests, range(1)).traces(solo, 5.0)
    asyncio.run(replay(engine, warming, hard=False))  # batches of all lengths are recorded
    result: dict[str, Any] = facts() | {"step_times": engine.times.to_table(), "solo_s": solo}
    result |= {"requests": options.requests, "seeds": options.seeds, "rows": []}
    results = list[Replay]()
    for one in run(engine, solo, options):
        print(line(one), flush=True)
        results.append(one)
        result["rows"].append(asdict(one))
        if options.until:
            result["goodput_per_s"] = at_best(results, options.until)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1))
    engine.stop()
    if options.until:
        print(json.dumps(result["goodput_per_s"], indent=1))


if __name__ == "__main__":
    main()
