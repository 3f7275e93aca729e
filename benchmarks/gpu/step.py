"""One denoising step, one decoding, one encoding of full-size Z-Image-Turbo: ours beside diffusers in the same run.

    python -m benchmarks.gpu.step [--compile] [--fp8] [--steps-only] [--sizes 256 512 1024] [--json FILE]

Random weights of full size (benchmarks.gpu.random_weights) on one GPU with 48 GB. `--compile` adds diffusers with
`compile_repeated_blocks`, `--fp8` our step in FP8. Prints milliseconds, and a table of the kernels of one
1024² step against what the chip was measured to do. Times are medians of CUDA events.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, ParamSpec

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from benchmarks.gpu import random_weights
from benchmarks.machine import facts
from serve.engine.graphs import Graphs
from serve.engine.open import Placement, decoder_of, fastest_ops, graphs_on, take_over
from serve.engine.qwen3 import Qwen3
from serve.engine.zimage import Row, ZImageTransformer, patchify

P = ParamSpec("P")
WARM_UP, ROUNDS = 3, 10
BF16 = Placement(torch.device("cuda"), torch.bfloat16)
FP8 = Placement(torch.device("cuda"), torch.bfloat16, fp8=True)
BATCHES = {256: (1, 2, 4, 8), 512: (1, 2, 4)}
CAPTION_TOKENS = 64
_STATE = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,power.limit", "--format=csv,noheader"]
SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=3.0)


@dataclass
class Report:
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, **values: Any) -> None:
        self.rows.append({"what": what} | values)
        print(f"{what:34}" + "".join(f"  {name} {_short(value)}" for name, value in values.items()), flush=True)


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def milliseconds(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """Of the device."""
    for _ in range(WARM_UP):
        work(*args, **kwargs)
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work(*args, **kwargs)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(median(times))


def wall_milliseconds(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work(*args, **kwargs)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def floor_ms(side: int, rows: int, peak_tflops: float) -> float:
    """FLOP of a step over what a large matrix product reaches on this chip."""
    image = (side // 16) ** 2
    tokens = image + CAPTION_TOKENS
    flop = 30 * (353.9e6 * tokens + 15360 * tokens**2) + 2 * (353.9e6 * image + 15360 * image**2)
    return rows * flop / peak_tflops / 1e9


def measure_chip(report: Report) -> float:
    """What a large matrix product reaches in a burst and, as the power allows, for seconds; returns the burst."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    burst = 2 * 8192**3 / milliseconds(torch.matmul, a, b) / 1e9
    product, times = 2 * 8192**3, []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(200):
            torch.matmul(a, b)
        end.record()
        times.append((start, end))
    time.sleep(1.5)
    state = subprocess.run(_STATE, capture_output=True, text=True, check=True).stdout.strip()
    torch.cuda.synchronize()
    sustained = 200 * product / times[-1][0].elapsed_time(times[-1][1]) / 1e9
    report.add("8192³ bf16 product, TFLOP/s", burst=burst, sustained=sustained, clock_power_limit=state)
    report.add("copy within the device", gb_per_s=copy_gb_per_s())
    return burst


def copy_gb_per_s() -> float:
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(target.copy_, source) / 1e6


def latents_of(side: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randn((rows, 16, side // 8, side // 8), generator=generator).to("cuda")


def caption_of() -> Tensor:
    return torch.randn((CAPTION_TOKENS, 2560), generator=torch.Generator().manual_seed(1)).to("cuda", torch.bfloat16)


@torch.inference_mode()
def stock_step(model: Any, side: int, rows: int) -> Tensor:
    latents = latents_of(side, rows).to(torch.bfloat16).unsqueeze(2)
    noise_left = torch.zeros(rows, device="cuda")
    output = model(list(latents), noise_left, [caption_of()] * rows, return_dict=False)[0]
    return -torch.stack([patchify(picture.squeeze(1)) for picture in output]).float()


def our_rows(transformer: ZImageTransformer, side: int, rows: int) -> list[Row]:
    caption, schedule = transformer.caption(caption_of()), transformer.schedule(8, (side // 16) ** 2)
    return [Row(patchify(latents), caption, schedule, 0, side, side) for latents in latents_of(side, rows)]


def measure_stock(report: Report, model: Any, name: str, sizes: list[int]) -> dict[int, Tensor]:
    velocities = {}
    for side in sizes:
        for rows in BATCHES.get(side, (1,)):
            if rows in (1, 4):
                ms = milliseconds(stock_step, model, side, rows)
                report.add(f"step {side} x{rows} {name}", ms=ms, ms_per_picture=ms / rows)
        velocities[side] = stock_step(model, side, 1)
    return velocities


def measure_ours(
    report: Report, transformer: ZImageTransformer, name: str, sizes: list[int], stock: dict[int, Tensor], peak: float
) -> None:
    assert transformer.graphs is not None
    for side in sizes:
        for rows in BATCHES.get(side, (1,)):
            batch = our_rows(transformer, side, rows)
            first = wall_milliseconds(transformer.velocity, batch)
            record = wall_milliseconds(transformer.velocity, batch)  # the second call records
            ms = milliseconds(transformer.velocity, batch)
            least = floor_ms(side, rows, peak)
            report.add(
                f"step {side} x{rows} {name}",
                ms=ms,
                ms_per_picture=ms / rows,
                floor_ms=least,
                of_floor=least / ms,
                first_ms=first,
                record_ms=record,
                error=relative_error(transformer.velocity(batch)[:1], stock[side]) if side in stock else -1.0,
                reserved_gb=torch.cuda.memory_reserved() / 1e9,
            )


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def measure_decoding(report: Report, sizes: list[int], graphs: Graphs | None) -> None:
    vae = random_weights.build("vae")
    with torch.inference_mode():
        decoded = {}
        for side in sizes:
            z = latents_of(side, 1).to(torch.bfloat16)
            ms = milliseconds(vae.decode, z, return_dict=False)
            decoded[side] = vae.decode(z, return_dict=False)[0].float()
            report.add(f"decode {side} diffusers", ms=ms)
    decoder = decoder_of(vae, BF16, graphs)
    for side in sizes:
        latents = list(latents_of(side, 1))
        first = wall_milliseconds(decoder.decode, latents)
        ms = median(wall_milliseconds(decoder.decode, latents) for _ in range(8))
        with torch.inference_mode():
            ours = decoder._decoder(latents_of(side, 1).to(torch.bfloat16)).float()
        report.add(
            f"decode {side} ours, to host bytes", ms=ms, first_ms=first, error=relative_error(ours, decoded[side])
        )


def measure_text(report: Report) -> None:
    model = random_weights.build("text_encoder")
    ids = {(rows, length): torch.randint(0, 2000, (rows, length), device="cuda") for rows, length in _TEXTS}
    expected = {}
    with torch.inference_mode():
        for shape, batch in ids.items():
            ms = milliseconds(model, input_ids=batch, use_cache=False)
            expected[shape] = model(input_ids=batch, output_hidden_states=True, use_cache=False).hidden_states[-2]
            report.add(f"text {shape[0]}x{shape[1]} transformers", ms=ms)
        forward = Qwen3(model, fastest_ops(BF16), graphs_on(BF16.device))
    for shape, batch in ids.items():
        first, record = (wall_milliseconds(forward, batch) for _ in range(2))
        ms = median(wall_milliseconds(_to_host, forward, batch) for _ in range(10))
        error = relative_error(forward(batch).float(), expected[shape].float())
        report.add(f"text {shape[0]}x{shape[1]} ours, to host", ms=ms, first_ms=first, record_ms=record, error=error)


def _to_host(forward: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    return forward(ids).cpu()


_TEXTS = ((1, 32), (1, 64), (1, 128), (1, 512), (4, 64), (8, 64))


def kernels_of(report: Report, transformer: ZImageTransformer, name: str, side: int, peak: float) -> None:
    """Where the time of one step goes, beside what each piece would take at this chip's measured best."""
    batch = our_rows(transformer, side, 1)
    sustained = [transformer.velocity(batch) for _ in range(8)]  # the clock falls to what the power allows
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        transformer.velocity(batch)
        torch.cuda.synchronize()
    del sustained
    times: dict[str, list[float]] = defaultdict(list)
    for event in profile.events():
        if event.device_type == torch.profiler.DeviceType.CUDA:
            times[_piece(event.name)].append(event.device_time / 1e3)
    bandwidth = copy_gb_per_s()
    work = _work(side)
    for piece, calls in sorted(times.items(), key=lambda item: -sum(item[1])):
        ms = sum(calls)
        values: dict[str, Any] = {"calls": len(calls), "ms": ms}
        if piece in work:
            flop, moved = work[piece]
            values |= {"tflops": flop / ms / 1e9} if flop else {"gb_per_s": moved / ms / 1e6}
            values |= {"floor_ms": flop / peak / 1e9 if flop else moved / bandwidth / 1e6}
        report.add(f"{side} {name}: {piece}", **values)
    report.add(f"{side} {name}: all kernels", calls=sum(map(len, times.values())), ms=sum(map(sum, times.values())))


def _piece(kernel: str) -> str:
    for piece, marks in _PIECES.items():
        if any(mark in kernel for mark in marks):
            return piece
    return "the rest"


_PIECES = {
    "attention": ("sdpa", "flash", "fmha", "_attention"),
    "norms and residuals": ("_residual_norm",),
    "QK norm and rotation": ("_norm_rotate",),
    "SiLU and product": ("_silu_mul",),
    "attention's values to FP8": ("_transpose",),
    "attention's result to FP8": ("_quantize",),
    "matrix products": ("nvjet", "gemm", "cutlass"),
    "clearing of counters": ("Memset",),
}


def _work(side: int) -> dict[str, tuple[float, float]]:
    """(FLOP, bytes) of each piece of one step, by hand."""
    image = (side // 16) ** 2
    lengths = [image] * 2 + [image + CAPTION_TOKENS] * 30
    total, squares = sum(lengths), sum(length**2 for length in lengths)
    row = 3840 * 2
    return {
        "matrix products": (353.9e6 * total, 0),
        "attention": (15360 * squares, 0),
        "norms and residuals": (0, 2 * 4 * row * total),
        "QK norm and rotation": (0, 4 * row * total),
        "SiLU and product": (0, 3 * 10240 * 2 * total),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 768, 1024, 1536, 2048])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--steps-only", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = Report()
    peak = measure_chip(report)
    model = random_weights.build("transformer")
    stock = measure_stock(report, model, "diffusers", [side for side in options.sizes if side <= 1536])
    if options.compile:
        torch._dynamo.config.recompile_limit = 64
        model.compile_repeated_blocks(fullgraph=True)
        measure_stock(report, model, "diffusers compiled", [side for side in options.sizes if side in (512, 1024)])
        model = random_weights.build("transformer")
    graphs = graphs_on(BF16.device)
    transformer = take_over(model, SCHEDULER, BF16, graphs)
    measure_ours(report, transformer, "ours", options.sizes, stock, peak)
    kernels_of(report, transformer, "step", 1024, peak)
    del transformer, model
    gc.collect()
    if options.fp8:
        quantized = take_over(random_weights.build("transformer"), SCHEDULER, FP8, graphs_on(FP8.device))
        measure_ours(report, quantized, "ours fp8", [s for s in options.sizes if s in (512, 1024)], stock, peak)
        kernels_of(report, quantized, "fp8 step", 1024, 2 * peak)
        del quantized
    if not options.steps_only:
        measure_decoding(report, options.sizes, graphs)
        measure_text(report)
    if options.json:
        options.json.write_text(json.dumps(facts() | {"rows": report.rows}, indent=1))


if __name__ == "__main__":
    main()
