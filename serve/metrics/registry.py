"""The one registry of the service. It lives in the Dispatcher; every Gateway serves what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.messages import ReplicaState, Series, Tally
from serve.metrics.catalog import CATALOG, Spec
from serve.metrics.statistics import Statistics
from serve.metrics.triton import TritonCollector


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Gauges at one moment: values by metric and labels, replicas as they last said, and who waits by model."""

    gauges: dict[Series, float]
    replicas: list[ReplicaState] = field(default_factory=list)
    pending: dict[str, int] = field(default_factory=dict)

    def beside(self, other: Snapshot) -> Snapshot:
        """Of both models."""
        return Snapshot(
            self.gauges | other.gauges, [*self.replicas, *other.replicas], {**self.pending, **other.pending}
        )


class Registry:
    """Counters and histograms are told with `count`, `observe` or a tally from elsewhere; gauges are asked for.

    Series that can be known beforehand exist from the start, at zero: a rate over the first event is then not lost.
    """

    def __init__(self, statistics: Sequence[Statistics], snapshot: Callable[[], Snapshot]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each that nobody reads
        self._registry = CollectorRegistry()
        self._counters = {spec.name: self._counter(spec) for spec in CATALOG if spec.kind == "counter"}
        self._histograms = {spec.name: self._histogram(spec) for spec in CATALOG if spec.kind == "histogram"}
        self._snapshot = snapshot
        self._registry.register(_Gauges(lambda: self._snapshot().gauges))
        self._registry.register(
            TritonCollector(statistics, lambda: self._snapshot().pending, lambda: self._snapshot().replicas)
        )

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(by)

    def observe(self, name: str, value: float, *labels: str) -> None:
        histogram = self._histograms[name]
        (histogram.labels(*labels) if labels else histogram).observe(value)

    def apply(self, tally: Tally) -> None:
        for (name, labels), value in tally.counts.items():
            self.count(name, *labels, by=value)
        for (name, labels), values in tally.observed.items():
            for value in values:
                self.observe(name, value, *labels)

    def render(self, more: Mapping[Series, float] = MappingProxyType({})) -> str:
        """In Prometheus' text format 0.0.4. All gauges are of one moment, but for `more`."""
        now = self._snapshot()
        taken = replace(now, gauges={**now.gauges, **more})
        ask, self._snapshot = self._snapshot, lambda: taken
        try:
            return generate_latest(self._registry).decode()
        finally:
            self._snapshot = ask

    def _counter(self, spec: Spec) -> Counter:
        return Counter(spec.name.removesuffix("_total"), spec.help, spec.labels, registry=self._registry)

    def _histogram(self, spec: Spec) -> Histogram:
        return Histogram(spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=self._registry)


class _Gauges(Collector):
    """Gauges without a value are declared all the same: without a sample, never zero."""

    def __init__(self, values: Callable[[], dict[Series, float]]) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        values = self._values()
        for spec in CATALOG:
            if spec.kind == "gauge":
                family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
                for (name, labels), value in values.items():
                    if name == spec.name:
                        family.add_metric(labels, value)
                yield family
