"""The deployments that people run today and ours, in turns on this machine, in one table.

    python -m loadtest.compare [--rounds 2] [--only gradio,flask,celery,cache,call,job] [--quick] [--json FILE]

Needs `make loadtest-deps`, and redis-server for Celery (`make test-deps`). All draw with the embedded model on one CPU
thread; the requests come from one seed. A full round takes about six minutes on an idle machine. With `--json`, rounds
that FILE holds already are kept and shown together with the new ones, so that a long run may be done in parts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from loadtest.measure import measure
from loadtest.plan import SIZES, Plan
from loadtest.subjects import BASELINES_PYTHON, ROOT, SUBJECTS, Subject
from loadtest.table import report


def chosen(names: str | None) -> list[Subject]:
    known = {subject.name: subject for subject in SUBJECTS}
    wanted = names.split(",") if names else list(known)
    if unknown := sorted(set(wanted) - known.keys()):
        raise SystemExit(f"error: --only: there is no {', '.join(unknown)}\nfix: choose from {', '.join(known)}")
    return [known[name] for name in wanted]


def check(subjects: list[Subject]) -> None:
    if not BASELINES_PYTHON.exists():
        raise SystemExit("error: there is no .venv-baselines\nfix: make loadtest-deps")
    if any(subject.name == "celery" for subject in subjects) and shutil.which("redis-server") is None:
        raise SystemExit("error: there is no redis-server on the PATH\nfix: make test-deps, or --only without celery")


def bare(plan: Plan) -> dict[int, float]:
    """Seconds that diffusers takes for a picture of each size, without a server."""
    command = [str(BASELINES_PYTHON), "-m", "loadtest.baselines.bare", *map(str, SIZES), "--repeats", str(plan.alone)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: diffusers does not draw in .venv-baselines:\n{done.stderr[-2000:]}")
    return {int(size): seconds for size, seconds in json.loads(done.stdout).items()}


def deployments(subjects: list[Subject]) -> list[list[Subject]]:
    """Ways of asking that go to one deployment are together."""
    groups: dict[object, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.processes, []).append(subject)
    return list(groups.values())


async def one_round(
    subjects: list[Subject], plan: Plan, rounds: list[Any], port: int, keep: Callable[[], None]
) -> None:
    """Appended to `rounds`, and kept after every deployment."""
    groups = deployments(subjects)
    first = len(rounds) % len(groups)
    measured = Counter(figures["subject"] for one in rounds for figures in one["figures"])
    load_before, bare_s = os.getloadavg()[0], bare(plan)
    found: list[dict[str, Any]] = []
    machine = facts() | {"cores": os.cpu_count(), "load_average": [load_before, load_before]}
    rounds.append({"machine": machine, "plan": asdict(plan), "bare_s": bare_s, "figures": found})
    for turn, group in enumerate(groups[first:] + groups[:first]):
        began = time.monotonic()
        found.extend(map(asdict, await measure(group, measured, plan, port + 2 * turn, bare_s)))
        machine["load_average"][1] = os.getloadavg()[0]
        keep()
        print(f"{', '.join(subject.title for subject in group)}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a minute for two deployments; says that it works")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.7, help="of the trace, as a share of diffusers' own capacity")
    parser.add_argument("--requests", type=int, default=40, help="in the trace")
    parser.add_argument("--port", type=int, default=9600, help="and the few above it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends what it has started
    subjects = chosen(options.only)
    check(subjects)
    plan = replace(Plan(), seed=options.seed, load=options.load, requests=options.requests)
    rounds = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(rounds, indent=1))

    for _ in range(options.rounds):
        asyncio.run(one_round(subjects, plan.quick() if options.quick else plan, rounds, options.port, keep))
    print(report(rounds))


if __name__ == "__main__":
    main()
