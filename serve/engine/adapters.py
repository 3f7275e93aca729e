"""Adapters in a replica's memory: loaded beside the step loop, lent to pictures, the least recently used go first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
import torch

from serve.adapters import AdapterFile
from serve.engine.lora import Adapter, load
from serve.errors import ConfigError, InvalidRequest, OutOfMemory
from serve.messages import ReplicaState
from serve.metrics.catalog import ADAPTER, CATALOG
from serve.metrics.tally import Recorder

log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    adapter: Adapter
    lent: int = 0


@dataclass(slots=True)
class Adapters:
    """Of one event loop. `load` runs in a thread of its own; `item_bytes` is the size of a number on the device.

    `recorder` counts what happens to them, under the name of the `model` that they belong to.
    """

    files: Mapping[str, AdapterFile] = field(default_factory=dict)
    load: Callable[[AdapterFile], Adapter] = lambda file: load(file, torch.device("cpu"), torch.float32)
    budget: int = 0
    item_bytes: int = 4
    model: str = ""
    recorder: Recorder = field(default_factory=Recorder)
    _held: OrderedDict[str, _Held] = field(default_factory=OrderedDict)
    _loading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _reserved: int = 0
    _returned: asyncio.Condition = field(default_factory=asyncio.Condition)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "adapters"))

    def __post_init__(self) -> None:
        for file in self.files.values():
            if self._bytes(file) > self.budget:
                raise ConfigError(
                    f"adapter {file.name!r} takes {self._bytes(file):,} bytes, adapter_bytes is {self.budget:,}",
                    param="adapter_bytes",
                    hint=f"raise adapter_bytes, or remove adapters.{file.name}",
                )

    @property
    def nbytes(self) -> int:
        return sum(held.adapter.nbytes for held in self._held.values())

    @property
    def most_bytes(self) -> int:
        """That they will ever take."""
        return min(self.budget, sum(self._bytes(file) for file in self.files.values()))

    def report(self, state: ReplicaState) -> ReplicaState:
        """What a heartbeat says of them."""
        digests = {file.name: file.digest for file in self.files.values()}
        held_bytes = self.nbytes if self.files else None
        return replace(state, adapters=digests, adapters_held=tuple(self._held), adapter_bytes=held_bytes)

    async def preload(self) -> None:
        self._declare()
        for file in self.files.values():
            if file.preload:
                async with self.lent(file.name):
                    pass

    @asynccontextmanager
    async def lent(self, name: str) -> AsyncIterator[Adapter]:
        """It stays in memory until the block is left. Waits while it is loaded, and for room while others are in use.

        Raises InvalidRequest for a name that this replica does not know, and WeightsError.
        """
        while (held := self._held.get(name)) is None:
            await self._load_once(name)
        self._held.move_to_end(name)
        held.lent += 1
        try:
            yield held.adapter
        finally:
            held.lent -= 1
            async with self._returned:
                self._returned.notify_all()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load_once(self, name: str) -> None:
        """All who want it wait for one load, which no one's leaving ends."""
        file = self.files.get(name)
        if file is None:
            there = ", ".join(self.files) or "none"
            raise InvalidRequest(f"no adapter {name!r}", param="adapter", hint=f"there are: {there}")
        if name not in self._loading:
            self._loading[name] = asyncio.ensure_future(self._load(file))
            self._loading[name].add_done_callback(partial(self._ended, name))
        await asyncio.shield(self._loading[name])

    def _ended(self, name: str, loading: asyncio.Task[None]) -> None:
        del self._loading[name]
        if not loading.cancelled() and (error := loading.exception()) is not None:  # perhaps nobody waits any more
            self.recorder.count("zimage_adapter_load_failures_total", self.model, name)
            log.error("an adapter was not loaded", adapter=name, error=str(error))

    async def _load(self, file: AdapterFile) -> None:
        needed = self._bytes(file)
        async with self._returned:
            await self._returned.wait_for(lambda: self._make_room(needed))
            self._reserved += needed
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            adapter = await loop.run_in_executor(self._thread, self.load, file)
            seconds = loop.time() - began
            self._held[file.name] = _Held(adapter)
            self.recorder.count("zimage_adapter_loads_total", self.model, file.name)
            self.recorder.observe("zimage_adapter_load_duration_seconds", seconds)
            log.info("adapter loaded", adapter=file.name, bytes=adapter.nbytes, seconds=round(seconds, 3))
        except torch.OutOfMemoryError as error:
            told = f"there is no memory for adapter {file.name!r} now"
            raise OutOfMemory(told, hint="ask again later: something else may use the GPU's memory") from error
        finally:
            self._reserved -= needed

    def _make_room(self, needed: int) -> bool:
        """Lets go of what nobody uses, the least recently used first, only as far as it takes."""
        for name in [name for name, held in self._held.items() if not held.lent]:
            if self._taken + needed <= self.budget:
                break
            self._held.pop(name).adapter.retired = True
            self.recorder.count("zimage_adapter_evictions_total", self.model, name)
        return self._taken + needed <= self.budget

    def _declare(self) -> None:
        """What may happen is there before it happens: a rate would otherwise miss the first time."""
        for spec in CATALOG:
            if spec.labels == ADAPTER:
                for name in self.files:
                    self.recorder.count(spec.name, self.model, name, by=0)

    @property
    def _taken(self) -> int:
        return self._reserved + self.nbytes

    def _bytes(self, file: AdapterFile) -> int:
        return file.parameters * self.item_bytes
