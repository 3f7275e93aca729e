"""What diffusers takes for a picture without any server, as JSON {side in pixels: seconds}.

python -m loadtest.baselines.bare 64 128 256 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from loadtest.baselines.pipeline import draw, open_pipeline, png


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    pipeline = open_pipeline()
    seconds = {}
    for size in options.sizes:
        png(draw(pipeline, "a red fox", size, 0))
        spent = []
        for seed in range(options.repeats):
            began = time.perf_counter()
            png(draw(pipeline, f"a red fox, number {seed}", size, seed))
            spent.append(time.perf_counter() - began)
        seconds[size] = statistics.median(spent)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
