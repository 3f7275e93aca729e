"""Full-size Z-Image-Turbo on two GPUs of one host, against one of them: pictures per second over HTTP, saturated.

    python -m benchmarks.gpu.random_weights FOLDER
    python -m benchmarks.gpu.two FOLDER [--sizes 1024] [--seconds 30] [--json FILE]

The same service, first with one Denoiser and then with two, each on a GPU of its own, and as many clients for each.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.gpu.serve import CLIENTS, CONFIG, READY_S, ask, config, numbered, process, settings_of
from benchmarks.machine import facts

WARM_UP_S = 6.0  # a batch of each length has been recorded, and clients are out of step
_seeds = count(1)


def per_second(options: argparse.Namespace, denoisers: int) -> dict[int, float]:
    """By side."""
    with (
        config(CONFIG, settings_of(options), denoisers) as (file, data),
        process("deployments.run", file, "--data", data) as (port, ready_s),
    ):
        wait_for(port, denoisers)
        print(f"{denoisers} ready, the first after {ready_s:.0f} s", flush=True)
        return {side: saturated(port, side, CLIENTS * denoisers, options.seconds) for side in options.sizes}


def wait_for(port: int, denoisers: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with urlopen(f"http://127.0.0.1:{port}/v1/stats") as answer:
            replicas = json.load(answer)["replicas"]
        if sum(one["role"] == "denoiser" and one["phase"] == "ready" for one in replicas) == denoisers:
            return
        time.sleep(0.25)
    raise RuntimeError(f"there are not {denoisers} denoisers")


def saturated(port: int, side: int, clients: int, seconds: float) -> float:
    """From one picture's end to another's, so that neither the beginning nor the end of the load counts."""
    ends, stop = list[float](), time.monotonic() + WARM_UP_S + seconds

    def client() -> None:
        while time.monotonic() < stop:
            seed = next(_seeds)
            ask(port, side, seed, numbered(seed))
            ends.append(time.monotonic())

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = sorted(end for end in ends if stop - seconds <= end <= stop)
    return (len(counted) - 1) / (counted[-1] - counted[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each size and number of Denoisers")
    parser.add_argument("--precision", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--haproxy", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if options.haproxy else "0"
    one, two = (per_second(options, denoisers) for denoisers in (1, 2))
    rows: list[dict[str, Any]] = [
        {"side": side, "one_per_s": one[side], "two_per_s": two[side], "ratio": two[side] / one[side]} for side in one
    ]
    for row in rows:
        print("  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(facts() | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
