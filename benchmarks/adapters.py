"""What an adapter costs: low-rank terms beside the matrices of a step, against merging it into them.

`python -m benchmarks.adapters [--model FOLDER]`, on a GPU where there is one. Random adapters on all blocks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from serve.engine.lora import PLACES, Adapter, Beside, LowRank
from serve.engine.open import Placement, load_transformer
from serve.engine.zimage import Row, ZImageTransformer
from serve.settings import EMBEDDED_FOLDER, Settings
from serve.weights import matrices_of

RANKS = (4, 16, 64)
ROUNDS = 15


def adapter(
    blocks: dict[str, dict[str, tuple[int, int]]], rank: int, device: torch.device, dtype: torch.dtype
) -> Adapter:
    """Random terms of `rank` for every matrix [out, in] of the blocks."""
    made: dict[str, dict[str, Beside]] = {}
    for block, matrices in blocks.items():
        parts: dict[str, dict[int, LowRank]] = {}
        for name, (rows, columns) in matrices.items():
            fused, place = PLACES[name]
            down, up = (torch.randn(shape) * 0.01 for shape in ((rank, columns), (rows, rank)))
            parts.setdefault(fused, {})[place] = LowRank(down, up).to(device, dtype)
        made[block] = {fused: Beside.of(places) for fused, places in parts.items()}
    nbytes = sum(beside.nbytes for matrices in made.values() for beside in matrices.values())
    return Adapter(f"rank {rank}", "", made, {}, nbytes)


def shapes_of(folder: Path) -> dict[str, dict[str, tuple[int, int]]]:

    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, (rows, columns) in matrices_of(folder).items():
        block, _, matrix = name.partition(".attention.") if ".attention." in name else name.partition(".feed_forward.")
        if matrix:
            found.setdefault(block, {})[matrix] = (rows, columns)
    return found


def step_seconds(transformer: ZImageTransformer, side: int, adapter: Adapter | None) -> float:
    extension = None if adapter is None else transformer.extend(adapter, 1.0)
    caption = transformer.caption(torch.zeros(32, transformer.embedding_size), extension)
    schedule = transformer.schedule(8, (side // 16) ** 2, extension)
    row = Row(transformer.noise(1, side, side), caption, schedule, 0, side, side, extension)
    return seconds(transformer.device, lambda: transformer.velocity([row]))


def merge_seconds(
    blocks: dict[str, dict[str, tuple[int, int]]], rank: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Of W += up · down for every matrix: what a change of the adapter would take."""
    matrices = [torch.zeros(shape, device=device, dtype=dtype) for block in blocks.values() for shape in block.values()]
    terms = [
        (
            torch.ones(len(matrix), rank, device=device, dtype=dtype),
            torch.ones(rank, matrix.shape[1], device=device, dtype=dtype),
        )
        for matrix in matrices
    ]

    def merge() -> list[Tensor]:
        return [matrix.addmm_(up, down) for matrix, (up, down) in zip(matrices, terms, strict=True)]

    return seconds(device, merge)


@torch.inference_mode()
def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The least of some rounds: on a CPU of its time alone, as others may use the machine."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(ROUNDS):
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED_FOLDER)
    parser.add_argument("--side", type=int, default=None, help="pixels; default: the model's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings() if options.model == EMBEDDED_FOLDER else Settings(model=str(options.model))
    placement = Placement.choose(settings)
    transformer = load_transformer(options.model, placement)
    blocks, side = shapes_of(options.model), options.side or settings.default_px
    plain = step_seconds(transformer, side, None)
    print(f"{placement}, {side}x{side}: a step without an adapter {plain * 1e3:.2f} ms")
    for rank in RANKS:
        it = adapter(blocks, rank, placement.device, placement.dtype)
        with_it = step_seconds(transformer, side, it)
        merging = merge_seconds(blocks, rank, placement.device, placement.dtype)
        print(
            f"rank {rank:3}: {it.nbytes / 1e6:8.2f} MB, a step {with_it * 1e3:.2f} ms ({with_it / plain:.2f} x), "
            f"merging it once {merging * 1e3:.2f} ms"
        )


if __name__ == "__main__":
    main()
