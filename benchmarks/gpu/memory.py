"""How much of a GPU's memory full-size pictures take, within a limit as if the card were smaller.

    python -m benchmarks.gpu.random_weights FOLDER
    python -m benchmarks.gpu.memory FOLDER [--limit 15GB] [--precision fp8] [--sizes 512 1024 1536 2048] [--text]
        [--json FILE]

A Denoiser alone on the GPU: loaded, warmed up, and then asked for a picture of each size, twice. `used` and `reserved`
are the peaks of PyTorch's tensors and of what it keeps for them; `device` is what the driver counts, with CUDA's own
context. A size over the limit is refused, as it would be in the service. `--text` encodes prompts on the CPU first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import facts
from serve.engine.engine import Engine
from serve.engine.flight import Generation
from serve.engine.open import Placement, open_engine, open_text_encoder
from serve.errors import OutOfMemory, TooLargeForMemory
from serve.messages import Phase, ReplicaState
from serve.settings import Settings

CAP_PX = 4096
PROMPT = "a photo of a red fox that sits on a yellow wooden bench in front of a blue house, in soft morning light"


def gigabytes() -> dict[str, float]:
    """Peaks since the last call, and what the device has given out."""
    free, total = torch.cuda.mem_get_info()
    found = {"used": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    torch.cuda.reset_peak_memory_stats()
    return {name: round(value / 1e9, 2) for name, value in (found | {"device": total - free}).items()}


def generation(side: int, seed: int, embedding: torch.Tensor, deadline: float) -> Generation:
    return Generation(
        id=f"{side}-{seed}",
        height=side,
        width=side,
        steps=8,
        seed=seed,
        embedding=embedding,
        negative=None,
        guidance=0.0,
        deadline=deadline,
        hard_deadline=False,
        alone=False,
        preview_steps=frozenset(),
    )


async def draw(engine: Engine, sizes: list[int], rows: list[dict[str, Any]]) -> None:
    embedding = torch.randn((64, 2560), generator=torch.Generator().manual_seed(1))
    for side in sizes:
        seconds, outcome = [], "drawn"
        for seed in (1, 2):
            began = time.perf_counter()
            try:
                await engine.draw(generation(side, seed, embedding, engine.clock() + 60), lambda *_: None)
            except (OutOfMemory, TooLargeForMemory) as error:
                outcome = str(error)
            seconds.append(time.perf_counter() - began)
        rows.append({"what": f"{side}²", "outcome": outcome, "s": round(min(seconds), 3)} | gigabytes())
        print(rows[-1], flush=True)


def text_on_cpu(settings: Settings, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    encoder = open_text_encoder(settings, folder, Placement.of_text(settings))
    loaded, seconds = time.perf_counter() - began, []
    for number in range(4):
        began = time.perf_counter()
        (embedding,) = encoder.encode([f"{PROMPT}, number {number}"])
        seconds.append(time.perf_counter() - began)
    tokens = len(embedding.tensor())
    return {"what": "text on the CPU", "threads": settings.threads, "load_s": loaded, "tokens": tokens} | {
        "s": median(seconds[1:])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", default="15GB")
    parser.add_argument("--precision", choices=["bf16", "fp8"], default="fp8")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 1536, 2048])
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = Settings.model_validate(
        {
            "model": str(options.folder),
            "device": "cuda",
            "text_encoder_device": "cpu",
            "precision": options.precision,
            "vram_limit": options.limit,
            "max_side_px": CAP_PX,
            "threads": options.threads,
            "warmup_sizes_px": options.sizes,
        }
    )
    rows: list[dict[str, Any]] = []
    if options.text:
        rows.append(text_on_cpu(settings, options.folder))
        print(rows[-1], flush=True)
    gigabytes()
    began = time.perf_counter()
    engine = open_engine(settings, options.folder, Placement.choose(settings))
    state = engine.report(ReplicaState(replica_id="d", role="denoiser", phase=Phase.READY), cap_px=CAP_PX)
    largest = {"max_px": state.max_px, "max_guided_px": state.max_guided_px}
    rows.append({"what": "loaded and warm", "s": round(time.perf_counter() - began, 1)} | largest | gigabytes())
    print(rows[-1], flush=True)
    asyncio.run(draw(engine, options.sizes, rows))
    engine.stop()
    if options.json:
        given = {"limit": options.limit, "precision": options.precision}
        options.json.write_text(json.dumps(facts() | given | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
