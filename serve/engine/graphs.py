"""Work on fixed shapes recorded once as CUDA graphs, and replayed without the cost of launching its kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Rows = Sequence[Sequence[Tensor]]
"""Inputs of a forward, each as one tensor per row; a stage sees them stacked."""

Stage = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""(inputs, what the stage before returned or None for the first) -> a tensor. Inputs and results have fixed shapes."""


def run_stages(rows: Rows, stages: Sequence[Stage]) -> Iterator[Tensor]:
    """Yields the result of every stage, launched kernel by kernel."""
    inputs = [torch.stack(list(tensors)) for tensors in rows]
    result = None
    for stage in stages:
        result = stage(inputs, result)
        yield result


@dataclass(slots=True)
class _Recorded:
    inputs: list[Tensor]
    rows: list[Tensor]  # of all inputs, where the next run's are copied to
    stages: Sequence[Stage]  # kept alive with all that they refer to
    graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.inputs, *self.results))


class Graphs:
    """Recorded work by key, the least recently used forgotten first.

    The first run of a key launches its kernels one by one, which also makes everything that they load lazily; the
    second is recorded. All recordings share their scratch memory, because only one runs at a time; what must
    outlive a stage (inputs and results) is each recording's own and counts towards the budget. What would take more
    than `scratch_bytes` in all, which nothing else can use, or does not fit, is never recorded: such work is large, and
    its launches cost little of its time.
    """

    def __init__(self, device: torch.device, budget_bytes: int, scratch_bytes: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._budget, self._scratch_budget, self._scratch = budget_bytes, scratch_bytes, 0
        self._too_large: set[Hashable] = set()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._shapes: dict[Hashable, list[Tensor]] = {}
        self._running: set[Hashable] = set()

    @property
    def bytes(self) -> int:
        """Of inputs and results of everything recorded."""
        return sum(recorded.bytes for recorded in self._recorded.values())

    @property
    def count(self) -> int:
        return len(self._recorded)

    def forget(self) -> None:
        """Gives back the memory of everything recorded, scratch included, but of nothing that runs."""
        torch.cuda.synchronize()
        for key in [key for key in self._shapes if key not in self._running]:
            del self._shapes[key]  # the thread that comes next may have loaded nothing of it
            if key in self._recorded:
                self._drop(key)
        torch.cuda.empty_cache()

    def drop(self, stale: Callable[[Any], bool]) -> None:
        """Forgets what is known of keys that will not come again, but nothing that runs."""
        self._too_large = {key for key in self._too_large if not stale(key)}
        for key in [key for key in self._shapes if key not in self._running and stale(key)]:
            del self._shapes[key]
            if key in self._recorded:
                self._drop(key)

    def run(self, key: Hashable, rows: Rows, stages: Sequence[Stage]) -> Iterator[Tensor]:
        """Yields the result of every stage as it is launched; it is overwritten by the next run of the same key.

        Between two stages anything else may run, and the rest may be left undone.
        """
        recordable = key in self._shapes and key not in self._running and key not in self._too_large
        recorded = self._recorded_for(key, rows, stages) if recordable else None
        if recorded is None:
            yield from self._run_unrecorded(key, rows, stages)
            return
        self._running.add(key)
        try:
            for graph, result in zip(recorded.graphs, recorded.results, strict=True):
                graph.replay()
                yield result
        finally:
            self._running.discard(key)

    def _run_unrecorded(self, key: Hashable, rows: Rows, stages: Sequence[Stage]) -> Iterator[Tensor]:
        inputs = [torch.stack(list(tensors)) for tensors in rows]
        shapes: list[Tensor] = []
        result = None
        for stage in stages:
            with _on(self._stream):
                result = stage(inputs, result)
            shapes.append(torch.empty_like(result, device="meta"))
            if len(shapes) == len(stages):
                self._shapes[key] = shapes
            yield result

    def _recorded_for(self, key: Hashable, rows: Rows, stages: Sequence[Stage]) -> _Recorded | None:
        """With these inputs; None where there is no room for it."""
        if key in self._recorded:
            self._recorded.move_to_end(key)
            recorded = self._recorded[key]
            torch._foreach_copy_(recorded.rows, [row for tensors in rows for row in tensors])
            return recorded
        if not self._record_with_room(key, rows, stages):
            self._too_large.add(key)
            torch.cuda.empty_cache()
            return None
        for old in [old for old in self._recorded if old != key and old not in self._running]:
            if self.bytes <= self._budget:
                break
            self._drop(old)
        return self._recorded[key]

    def _record_with_room(self, key: Hashable, rows: Rows, stages: Sequence[Stage]) -> bool:
        """False where there is none."""
        torch.cuda.empty_cache()  # nothing can be given back while something is recorded
        before = torch.cuda.memory_reserved(self._device)
        try:
            with _on(self._stream):
                self._recorded[key] = self._record(rows, stages, self._shapes[key])
        except torch.OutOfMemoryError as error:
            error.__traceback__ = None  # its frames hold what is to be freed
            self._renew()
            return False
        scratch = self._scratch + torch.cuda.memory_reserved(self._device) - before
        if scratch > self._scratch_budget:
            self._drop(key)
            return False
        self._scratch = scratch
        return True

    def _drop(self, key: Hashable) -> None:
        for graph in self._recorded.pop(key).graphs:
            graph.reset()
        self._renew()

    def _renew(self) -> None:
        """A pool ends with its last graph."""
        if not self._recorded:
            self._pool, self._scratch = torch.cuda.graph_pool_handle(), 0

    def _record(self, rows: Rows, stages: Sequence[Stage], shapes: Sequence[Tensor]) -> _Recorded:
        inputs = [torch.stack(list(tensors)) for tensors in rows]
        recorded = _Recorded(inputs, [row for tensor in inputs for row in tensor.unbind()], stages)
        before = None
        for stage, shape in zip(stages, shapes, strict=True):
            result = torch.empty_like(shape, device=inputs[0].device)
            recorded.graphs.append(self._capture(stage, recorded.inputs, before, result))
            recorded.results.append(result)
            before = result
        return recorded

    def _capture(
        self, stage: Stage, inputs: Sequence[Tensor], before: Tensor | None, result: Tensor
    ) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(self._pool, capture_error_mode="thread_local")
        try:
            result.copy_(stage(inputs, before))
        except BaseException:
            with suppress(RuntimeError):  # the capture is invalid, and says so once more when it is ended
                graph.capture_end()
            raise
        graph.capture_end()
        return graph


@contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on `stream`, in order with what the current stream did before and does after."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
