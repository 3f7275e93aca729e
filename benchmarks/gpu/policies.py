"""One seeded trace, replayed for every policy through the real engine with full-size Z-Image-Turbo on one GPU.

    python -m benchmarks.gpu.policies [--loads 0.5 0.8 1.0] [--requests 40] [--sizes 512 768 1024 1536] [--json FILE]
    python -m benchmarks.gpu.policies --arrivals Poisson --until 0.95 --loads 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1.0

Random weights of full size, 8 steps, four sizes at 30/20/40/10 %; Poisson arrivals and bursts. The engine measures
itself first, so a load of 1 is what it can draw; its table, in the form of `benchmarks/h200_steps.json`, goes into the
result. Deadlines are alpha times the time alone; only `edf` looks at them, so the others are replayed once and judged
by both alphas. A request that is late is a miss; goodput is what was in time, per second of the trace. With `--until` a
policy is not replayed at higher loads once fewer than this share are on time, whichever alpha; the best goodput with at
least this share on time is printed for each policy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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


def judged(name: str, load: float, alpha: float, policy: str, drawn: list[Arrival], latencies: list[float]) -> Replay:
    met = sum(latency <= arrival.allowed for latency, arrival in zip(latencies, drawn, strict=True))
    seconds = drawn[-1].at - drawn[0].at
    p99 = sorted(latencies)[int(0.99 * len(latencies))]
    return Replay(name, load, alpha, policy, met / len(drawn), met / seconds, p99)


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


def drawn_for(solo: dict[int, float], options: argparse.Namespace, load: float, alpha: float) -> list[Arrival]:
    asked = argparse.Namespace(load=load, alpha=alpha, requests=options.requests, bursty=options.bursty)
    return trace(solo, asked, options.seed)


def replays(
    engine: Engine, solo: dict[int, float], options: argparse.Namespace, load: float, policies: Iterable[str]
) -> list[Replay]:
    name, results = "bursty" if options.bursty else "Poisson", []
    traces = {alpha: drawn_for(solo, options, load, alpha) for alpha in ALPHAS}
    for policy in policies:
        latencies = list[float]()
        for alpha in ALPHAS:
            if not latencies or policy == "edf":
                run_by(engine, policy)
                latencies = [seconds for seconds, _ in asyncio.run(replay(engine, traces[alpha], hard=False))]
            results.append(judged(name, load, alpha, policy, traces[alpha], latencies))
            one = results[-1]
            print(
                f"{time.strftime('%X')} {name:8}{load} {alpha} {policy:12}{100 * one.attained:6.1f} %  "
                f"{one.goodput_per_s:.2f}/s  p99 {one.p99_s:.1f} s",
                flush=True,
            )
    return results


def at_best(results: list[Replay], share: float) -> dict[str, dict[str, float]]:
    """The most with at least this share on time, by arrivals and alpha, then by policy."""
    best: dict[str, dict[str, float]] = {}
    for one in results:
        if one.attained >= share:
            of_kind = best.setdefault(f"{one.arrivals}, alpha {one.alpha:g}", {})
            of_kind[one.policy] = max(of_kind.get(one.policy, 0.0), one.goodput_per_s)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.0])
    parser.add_argument("--sizes", type=int, nargs=4, default=[512, 768, 1024, 1536])
    parser.add_argument("--requests", type=int, default=40, help="of one trace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=ARRIVALS)
    parser.add_argument("--until", type=float, help="the share on time below which a policy is given up")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = opened(options.sizes)
    result: dict[str, Any] = facts() | {"step_times": engine.times.to_table(), "requests": options.requests}
    solo = {side: solo_seconds(engine, side) for side in options.sizes}
    results = list[Replay]()
    options.bursty = False
    asyncio.run(replay(engine, drawn_for(solo, options, 2.0, 5.0), hard=False))  # batches of all lengths are recorded
    for name in options.arrivals:
        options.bursty, policies = name == "bursty", list(POLICIES)
        for load in sorted(options.loads):
            found = replays(engine, solo, options, load, policies)
            results += found
            if options.until:
                attained = {policy: max(one.attained for one in found if one.policy == policy) for policy in policies}
                policies = [policy for policy in policies if attained[policy] >= options.until]
                result["goodput_per_s"] = at_best(results, options.until)
            if options.json:
                rows = [asdict(one) for one in results]
                options.json.write_text(json.dumps(result | {"solo_s": solo, "rows": rows}, indent=1))
    engine.stop()
    if options.until:
        print(json.dumps(result["goodput_per_s"], indent=1))


if __name__ == "__main__":
    main()
