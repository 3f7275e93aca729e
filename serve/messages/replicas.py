"""Replicas, as they report themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from serve.messages.requests import ImageRequest


class Phase(StrEnum):
    """What a replica is doing on its way to serving; one that is lost, or about to be stopped, is on no way."""

    LOST = "device lost"
    STOPPING = "stopping"
    STARTING = "starting"
    LOADING = "loading weights"
    WARMING_UP = "warming up"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A device as its driver sees it, all processes on it together; None where the driver does not say (MIG).

    `utilization` is the share of time in which a kernel ran, 0 to 1.
    """

    uuid: str
    utilization: float | None
    power_w: float | None
    memory_used: int
    memory_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """A GPU replica as it registers with the Dispatcher and repeats in every heartbeat.

    It serves the `model` of this name; empty is the first. Denoisers with the same `engine` draw the same pictures: it
    names weights, code, device and precision. Empty is unknown, and nothing is cached then. `warmup_s` is the time from
    the start of its process to ready.

    VRAM in bytes: `used` by tensors, `reserved` by the process, `total` that it may use; None on a CPU. `max_px` is the
    side of the largest square that fits into it, with guidance `max_guided_px`; None where memory is no limit.
    `max_input_px` is that of the largest picture to begin with. `adapters` are those that it serves, by name with the
    digest of their files; `adapters_held` are in its memory, and take `adapter_bytes` of it. So are `controlnets`.
    """

    replica_id: str
    model: str = ""
    role: Literal["text_encoder", "denoiser"]
    phase: Phase
    fraction: float = 0.0
    device: str = ""
    engine: str = ""
    slots: int = 0
    step_times: dict[str, dict[str, float]] = field(default_factory=dict)
    vram_used: int | None = None
    vram_reserved: int | None = None
    vram_total: int | None = None
    gpu: GpuState | None = None
    warmup_s: float | None = None
    max_px: int | None = None
    max_guided_px: int | None = None
    max_input_px: int | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    adapters_held: tuple[str, ...] = ()
    adapter_bytes: int | None = None
    controlnets: dict[str, str] = field(default_factory=dict)
    controlnets_held: tuple[str, ...] = ()
    controlnet_bytes: int | None = None

    def takes(self, request: ImageRequest) -> bool:
        """Whether its memory can."""
        largest = self.largest_px(request)
        return largest is None or request.width * request.height <= largest**2

    def largest_px(self, request: ImageRequest) -> int | None:
        """The side of the largest such square that its memory takes; None where that is no limit."""
        sides = [self.max_guided_px if request.guided else self.max_px]
        if request.inputs:
            sides.append(self.max_input_px)
        return min((side for side in sides if side is not None), default=None)
