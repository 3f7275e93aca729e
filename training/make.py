"""Makes the embedded model: `python -m training.make --out build/tiny` on a machine with a GPU, in 25 minutes."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from training.config import FULL_MINUTES, SMOKE, Config
from training.data.fetch import FetchFailed, fetch


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    options = _parser().parse_args(arguments)
    # Worker processes import this module again: torch stays out of it.
    from training.devices import best_device  # noqa: PLC0415
    from training.run import train  # noqa: PLC0415

    config = SMOKE if options.smoke else Config().for_minutes(options.minutes)
    if best_device().type == "cpu" and not options.smoke:
        raise SystemExit("training needs a CUDA device; `--smoke` takes a few steps on the CPU")
    data = options.data or options.out / "emoji"
    try:
        fetch(data)
    except FetchFailed as error:
        raise SystemExit(f"{error}; or fetch on another machine and pass the folder as --data") from error
    train(
        replace(config, seed=options.seed, compile=config.compile and not options.no_compile),
        data,
        options.out,
        started,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="gets model/, results.json, sheet.png and log.txt")
    parser.add_argument(
        "--data", type=Path, help="a folder that training.data.fetch filled (default: fetched into OUT)"
    )
    parser.add_argument("--minutes", type=float, default=FULL_MINUTES, help="wall clock for everything (default 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="several times slower; for when the compiler fails")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, on the CPU too")
    return parser


if __name__ == "__main__":
    main()
