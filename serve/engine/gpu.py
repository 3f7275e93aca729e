"""What the driver says of the device that a replica runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml
import torch

from serve.messages import GpuState


class Gpu:
    """One CUDA device by its UUID, whatever CUDA_VISIBLE_DEVICES calls it."""

    def __init__(self, device: torch.device) -> None:
        pynvml.nvmlInit()
        self._uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)

    def state(self) -> GpuState:
        memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        rates = _if_told(pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        milliwatts = _if_told(pynvml.nvmlDeviceGetPowerUsage, self._handle)
        return GpuState(
            uuid=self._uuid,
            utilization=None if rates is None else rates.gpu / 100,
            power_w=None if milliwatts is None else milliwatts / 1e3,
            memory_used=memory.used,
            memory_total=memory.total,
        )


def _if_told(read: Callable[[Any], Any], handle: Any) -> Any:
    try:
        return read(handle)
    except pynvml.NVMLError:  # a slice of a device, or a driver that does not measure this
        return None


def gpu_of(device: torch.device) -> Gpu | None:
    """None for a CPU."""
    return Gpu(device) if device.type == "cuda" else None
