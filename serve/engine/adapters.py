"""Adapters in a replica's memory: loaded beside the step loop, lent to pictures, the least recently used go first.

ControlNets are kept in the same way, within bytes of their own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import structlog
import torch

from serve.adapters import AdapterFile
from serve.controlnets import ControlNetFile
from serve.engine.controlnet import ControlNet
from serve.engine.controlnet import load as open_controlnet
from serve.engine.lora import Adapter, load
from serve.errors import ConfigError, InvalidRequest, OutOfMemory
from serve.messages import ReplicaState
from serve.metrics.catalog import BY_NAME, CATALOG
from serve.metrics.tally import Recorder

log = structlog.get_logger()


class _OnDisk(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def preload(self) -> bool: ...


class _InMemory(Protocol):
    retired: bool

    @property
    def nbytes(self) -> int: ...


File = TypeVar("File", bound=_OnDisk)
Loaded = TypeVar("Loaded", bound=_InMemory)


@dataclass(slots=True)
class _Held(Generic[Loaded]):
    adapter: Loaded
    lent: int = 0


@dataclass(slots=True)
class Adapters(Generic[File, Loaded]):
    """Of one event loop. `load` runs in a thread of its own; `item_bytes` is the size of a number on the device.

    `recorder` counts what happens to adapters, under the name of the `model` that they belong to.

    `kind` is what they are called: "adapter" or "controlnet".
    """

    files: Mapping[str, File]
    load: Callable[[File], Loaded]
    budget: int = 0
    item_bytes: int = 4
    kind: str = "adapter"
    model: str = ""
    recorder: Recorder = field(default_factory=Recorder)
    _held: OrderedDict[str, _Held[Loaded]] = field(default_factory=OrderedDict)
    _loading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _reserved: int = 0
    _returned: asyncio.Condition = field(default_factory=asyncio.Condition)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "adapters"))

    def __post_init__(self) -> None:
        for file in self.files.values():
            if self._bytes(file) > self.budget:
                raise ConfigError(
                    f"{self.kind} {file.name!r} takes {self._bytes(file):,} bytes, {self._setting} is {self.budget:,}",
                    param=self._setting,
                    hint=f"raise {self._setting}, or remove {self.kind}s.{file.name}",
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
        said: dict[str, Any] = {f"{self.kind}s": digests, f"{self.kind}s_held": tuple(self._held)}
        said[f"{self.kind}_bytes"] = self.nbytes if self.files else None
        return replace(state, **said)

    async def preload(self) -> None:
        self._declare()
        for file in self.files.values():
            if file.preload:
                async with self.lent(file.name):
                    pass

    @asynccontextmanager
    async def lent(self, name: str) -> AsyncIterator[Loaded]:
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
            raise InvalidRequest(f"no {self.kind} {name!r}", param=self.kind, hint=f"there are: {there}")
        if name not in self._loading:
            self._loading[name] = asyncio.ensure_future(self._load(file))
            self._loading[name].add_done_callback(partial(self._ended, name))
        await asyncio.shield(self._loading[name])

    def _ended(self, name: str, loading: asyncio.Task[None]) -> None:
        del self._loading[name]
        if not loading.cancelled() and (error := loading.exception()) is not None:  # perhaps nobody waits any more
            self._count("load_failures_total", name)
            log.error(f"one {self.kind} was not loaded", **{self.kind: name}, error=str(error))

    async def _load(self, file: File) -> None:
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
            self._count("loads_total", file.name)
            self.recorder.observe(f"zimage_{self.kind}_load_duration_seconds", seconds)
            told = {self.kind: file.name, "bytes": adapter.nbytes, "seconds": round(seconds, 3)}
            log.info(f"{self.kind} loaded", **told)
        except torch.OutOfMemoryError as error:
            missing = f"there is no memory for {self.kind} {file.name!r} now"
            raise OutOfMemory(missing, hint="ask again later: something else may use the GPU's memory") from error
        finally:
            self._reserved -= needed

    def _make_room(self, needed: int) -> bool:
        """Lets go of what nobody uses, the least recently used first, only as far as it takes."""
        for name in [name for name, held in self._held.items() if not held.lent]:
            if self._taken + needed <= self.budget:
                break
            self._held.pop(name).adapter.retired = True
            self._count("evictions_total", name)
        return self._taken + needed <= self.budget

    def _declare(self) -> None:
        """What may happen is there before it happens: a rate would otherwise miss the first time."""
        for spec in CATALOG:
            if spec.labels == BY_NAME[self.kind]:
                for name in self.files:
                    self.recorder.count(spec.name, self.model, name, by=0)

    def _count(self, metric: str, name: str) -> None:
        self.recorder.count(f"zimage_{self.kind}_{metric}", self.model, name)

    @property
    def _taken(self) -> int:
        return self._reserved + self.nbytes

    @property
    def _setting(self) -> str:
        return f"{self.kind}_bytes"

    def _bytes(self, file: File) -> int:
        return file.parameters * self.item_bytes


def no_adapters() -> Adapters[AdapterFile, Adapter]:
    return Adapters({}, partial(load, device=torch.device("cpu"), dtype=torch.float32))


def no_controlnets() -> Adapters[ControlNetFile, ControlNet]:
    return Adapters({}, partial(open_controlnet, device=torch.device("cpu"), dtype=torch.float32), kind="controlnet")
