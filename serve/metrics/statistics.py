"""Totals by Triton's counting rules, for `nv_*` metrics and for `/v2/models/stats`: of the whole, and of its parts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
REASONS: tuple[Reason, ...] = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


@dataclass(slots=True)
class Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += max(0.0, seconds)


@dataclass(slots=True)
class ModelStatistics:
    """Of one model since the start. `executions` may be a fraction: a denoising step is one of its picture's `steps`.

    A request succeeds once, however many pictures it holds; its pictures are in `inferences`, what a cache answered
    is not. What failed is in `failed` and `failures` only.
    """

    success: Duration = field(default_factory=Duration)
    failed: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    failures: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    inferences: int = 0
    executions: float = 0.0
    batches: dict[int, Duration] = field(default_factory=dict)
    last_inference_ms: int = 0

    def fail(self, reason: Reason, seconds: float) -> None:
        self.failed.add(seconds)
        self.failures[reason] += 1

    def compute(self, infer_s: float, output_s: float) -> None:
        """Making inputs ready is not measured apart; perf_analyzer ends where the three counts differ."""
        self.compute_input.add(0.0)
        self.compute_infer.add(infer_s)
        self.compute_output.add(output_s)

    def ran(self, inferences: int) -> None:
        self.inferences += inferences
        self.last_inference_ms = int(1e3 * time.time())

    def execute(self, members: int, executions: float, seconds: float) -> None:
        """A batch of so many members took `seconds`."""
        self.executions += executions
        self.batches.setdefault(members, Duration()).add(seconds)


@dataclass(slots=True)
class Statistics:
    """Of one model: the pipeline, called by the served name, and its two parts, whose names end with `tail`."""

    model: str
    tail: str = ""
    pipeline: ModelStatistics = field(default_factory=ModelStatistics)
    text_encoder: ModelStatistics = field(default_factory=ModelStatistics)
    denoiser: ModelStatistics = field(default_factory=ModelStatistics)

    def models(self) -> dict[str, ModelStatistics]:
        return {
            self.model: self.pipeline,
            f"text_encoder{self.tail}": self.text_encoder,
            f"denoiser{self.tail}": self.denoiser,
        }
