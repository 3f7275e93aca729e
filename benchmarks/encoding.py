"""What it costs to encode a picture to begin with, beside decoding one of the same size: bytes too, on a GPU.

`python -m benchmarks.encoding [--model FOLDER]`, on a GPU where there is one, else with one CPU thread. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import facts
from serve.engine.memory import CudaMeter
from serve.engine.open import Placement, load_decoder
from serve.settings import EMBEDDED_FOLDER, Settings

ROUNDS = 15
SIDES = {"cpu": (64, 128, 192, 256), "cuda": (256, 512, 1024, 1536, 2048)}


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The median, after two runs that say nothing of the others."""
    taken = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED_FOLDER, help="a folder in ZImagePipeline's layout")
    model = parser.parse_args().model
    torch.set_num_threads(1)
    placement = Placement.choose(Settings())
    device = placement.device
    decoder = load_decoder(model, placement)
    meter = CudaMeter(device, None) if device.type == "cuda" else None
    print(f"{facts()}\n{placement}\n{'size':>10} {'encode ms':>10} {'decode ms':>10} {'share':>6} {'bytes':>6}")
    for side in SIDES[device.type]:
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        latents, _ = decoder.encoder.encode(pixels)

        def encode(pixels: np.ndarray = pixels) -> object:
            return decoder.encoder.encode(pixels)

        def decode(latents: torch.Tensor = latents) -> object:
            return decoder.decode([latents])

        encoding, decoding = seconds(device, encode), seconds(device, decode)
        share = f"{meter.peak(encode) / meter.peak(decode):.2f}" if meter else "–"
        ratio = encoding / decoding
        print(f"{f'{side}²':>10} {1e3 * encoding:10.1f} {1e3 * decoding:10.1f} {ratio:6.2f} {share:>6}")


if __name__ == "__main__":
    main()
