"""What depends on the device: precision, and the compiler's settings."""

from __future__ import annotations

import torch
import torch._dynamo.config
import torch.fx.experimental._config


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_num_threads(1)
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    # Twelve canvases times three caption lengths; and a batch that happens to equal a length must not recompile.
    torch._dynamo.config.recompile_limit = 64
    torch.fx.experimental._config.use_duck_shape = False


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
