"""The totals under Triton's own metric names, so that its dashboards, alerts and autoscaling rules work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from serve.messages import GpuState, ReplicaState
from serve.metrics.statistics import ModelStatistics, Statistics

VERSION = "1"

_TOTALS: dict[str, tuple[str, Callable[[ModelStatistics], float]]] = {
    "nv_inference_request_success": ("successful requests", lambda m: m.success.count),
    "nv_inference_count": ("pictures drawn, cached ones excluded", lambda m: m.inferences),
    "nv_inference_exec_count": ("batches run", lambda m: int(m.executions)),
    "nv_inference_request_duration_us": ("time of successful requests", lambda m: _us(m.success.seconds)),
    "nv_inference_queue_duration_us": ("time in the queue", lambda m: _us(m.queue.seconds)),
    "nv_inference_compute_input_duration_us": ("time preparing inputs", lambda m: _us(m.compute_input.seconds)),
    "nv_inference_compute_infer_duration_us": ("time in the model", lambda m: _us(m.compute_infer.seconds)),
    "nv_inference_compute_output_duration_us": ("time decoding and writing", lambda m: _us(m.compute_output.seconds)),
}
_FAILURE = "nv_inference_request_failure"
_PENDING = "nv_inference_pending_request_count"
_GPU: dict[str, tuple[str, Callable[[GpuState], float | None]]] = {
    "nv_gpu_utilization": ("share of time in which a kernel ran, 0 to 1", lambda gpu: gpu.utilization),
    "nv_gpu_power_usage": ("watts", lambda gpu: gpu.power_w),
    "nv_gpu_memory_used_bytes": ("of the whole device", lambda gpu: gpu.memory_used),
    "nv_gpu_memory_total_bytes": ("of the whole device", lambda gpu: gpu.memory_total),
}
TRITON_NAMES = (*_TOTALS, _FAILURE, _PENDING, *_GPU)


class TritonCollector(Collector):
    """Counters are declared of unknown type: `prometheus_client` would put `_total` behind a counter's name.

    `pending` says how many requests wait, by model.
    """

    def __init__(
        self,
        statistics: Sequence[Statistics],
        pending: Callable[[], Mapping[str, int]],
        replicas: Callable[[], list[ReplicaState]],
    ) -> None:
        self._statistics = statistics
        self._pending = pending
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        models = {name: totals for statistics in self._statistics for name, totals in statistics.models().items()}
        for name, (help, value) in _TOTALS.items():
            metric = Metric(name, help, "unknown")
            for model, totals in models.items():
                metric.add_sample(name, _labels(model), value(totals))
            yield metric
        failures = Metric(_FAILURE, "failed requests by reason", "unknown")
        for model, totals in models.items():
            for reason, count in totals.failures.items():
                failures.add_sample(_FAILURE, {**_labels(model), "reason": reason}, count)
        yield failures
        waiting = Metric(_PENDING, "requests that wait", "gauge")
        for model, count in self._pending().items():
            waiting.add_sample(_PENDING, _labels(model), count)
        yield waiting
        yield from self._devices()

    def _devices(self) -> Iterator[Metric]:
        """Several replicas may share a device; it is told once."""
        devices = {replica.gpu.uuid: replica.gpu for replica in self._replicas() if replica.gpu is not None}
        for name, (help, read) in _GPU.items():
            metric = Metric(name, help, "gauge")
            for uuid, gpu in devices.items():
                if (value := read(gpu)) is not None:
                    metric.add_sample(name, {"gpu_uuid": uuid}, value)
            yield metric


def _labels(model: str) -> dict[str, str]:
    return {"model": model, "version": VERSION}


def _us(seconds: float) -> int:
    return int(1e6 * seconds)
