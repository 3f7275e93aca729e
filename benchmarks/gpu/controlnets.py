"""What a full-size ControlNet costs a step of full-size Z-Image-Turbo: milliseconds and bytes, with and without it.

    python -m benchmarks.gpu.controlnets [--sizes 512 1024] [--json FILE]

Random weights of full size in the layouts that alibaba-pai publishes: union 1.0 (6 control layers) and 2.1 (15).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageControlNetModel

from benchmarks.gpu import random_weights
from benchmarks.gpu.step import BF16, SCHEDULER, latents_of, milliseconds, our_rows
from benchmarks.machine import facts
from serve.controlnets import ControlConfig, ControlNetFile
from serve.engine.controlnet import ControlNet
from serve.engine.memory import CONTROL_ROOM, CudaMeter
from serve.engine.open import fastest_ops, graphs_on, take_over
from serve.engine.ops import Arithmetic, Linear

UNIONS = {
    "union 1.0": ControlConfig(control_layers_places=tuple(range(0, 30, 5)), control_in_dim=16),
    "union 2.1": ControlConfig(
        control_layers_places=tuple(range(0, 30, 2)),
        control_refiner_layers_places=(0, 1),
        control_in_dim=33,
        add_control_noise_refiner="control_noise_refiner",
    ),
}


def build(name: str) -> ControlNet:
    with torch.device("meta"):
        model = ZImageControlNetModel.from_config(UNIONS[name].model_dump())
    model = random_weights.randomize(model.to(torch.bfloat16).to_empty(device="cuda")).eval()
    file = ControlNetFile(
        name=name,
        path=Path(name),
        config=UNIONS[name].model_dump(),
        digest=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        work=1.0,
        scale=1.0,
        preload=False,
    )
    return ControlNet(file, model, Arithmetic(fastest_ops(BF16), Linear))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    transformer = take_over(random_weights.build("transformer"), SCHEDULER, BF16, graphs_on(BF16.device))
    meter = CudaMeter(BF16.device, None)
    rows: list[dict[str, Any]] = []
    plain: dict[int, tuple[float, int]] = {}
    for name in (None, *UNIONS):
        net = None if name is None else build(name)
        for side in options.sizes:
            (row,) = our_rows(transformer, side, 1)
            if net is not None:
                row.control = transformer.control(net, latents_of(side, 1)[0], 0.8, 8)
            needed = meter.peak(lambda row=row: transformer.velocity([row]))  # type: ignore[misc]
            ms = milliseconds(transformer.velocity, [row])
            plain.setdefault(side, (ms, needed))
            rows.append(
                {
                    "what": f"{side}² {name or 'alone'}",
                    "ms": round(ms, 2),
                    "times": round(ms / plain[side][0], 3),
                    "step_mb": needed / 1e6,
                    "times_memory": round(needed / plain[side][1], 3),
                    "weights_gb": round(net.nbytes / 1e9, 2) if net else 0,
                }
            )
            print(rows[-1], flush=True)
        if net is not None:
            net.retired = True
    print(f"assumed beforehand of memory: {CONTROL_ROOM} times")
    if options.json:
        options.json.write_text(json.dumps(facts() | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
