"""Files that are changed while the service runs: read, validated whole, then swapped; a bad one keeps the old one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
import yaml
from watchfiles import awatch

from serve.document import NoDocument, read_text
from serve.errors import InvalidConfig

T = TypeVar("T")
Parse = Callable[[str, str], T]  # name of the file and its text; raises InvalidConfig with every problem

SAVING_S = 0.05  # in which a program that writes a file in place is done
LOOK_EVERY_MS = 5_000  # where the file system tells nothing, as some network folders do

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class HotStatus:
    """Which version of a file is at work, and why a newer one is not. Times are Unix seconds."""

    name: str
    source: str
    hash: str
    loaded_at: float
    error: str | None = None
    error_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    source: str
    text: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


NOTHING = _Text("none", "")


class Hot(Generic[T]):
    """One file: `value` is its newest good version, whole, and `empty` before there was one.

    `path` None is no file: there is a value when one was given. The text of every good version is kept in `spare`,
    for a process that starts while the file is bad.
    """

    def __init__(self, name: str, path: Path | None, parse: Parse[T], empty: T, spare: Path | None = None) -> None:
        self.name = name
        self.path = path
        self.value = empty
        self.status = HotStatus(name=name, source="none", hash="", loaded_at=time.time())
        self._parse = parse
        self._empty = empty
        self._spare = spare
        self._given: str | None = None
        self._judged = ""  # hash of the newest text, good or bad
        self._refused: InvalidConfig | None = None
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """The first look. Where the file is bad the value is what `spare` keeps; the status says why."""
        with suppress(InvalidConfig):
            await self.refresh()
            return
        if self._spare is not None and self._spare.is_file():
            text = _Text("the last good version", await asyncio.to_thread(self._spare.read_text, "utf-8"))
            with suppress(InvalidConfig):  # an older program may have found it good
                self._swap(text, await asyncio.to_thread(self._parse, text.source, text.text))

    async def refresh(self) -> bool:
        """Looks at the source; True when another version is at work now.

        Raises InvalidConfig while the source is bad, and the version before stays.
        """
        async with self._lock:
            try:
                text = await asyncio.to_thread(self._read)
                if text.hash != self._judged:
                    return await self._judge(text)
            except NoDocument as error:
                self._judged = ""
                hint = error.problem.hint or f"put {self.name} back"
                raise self._refuse(InvalidConfig(str(error.problem), hint=hint)) from None
            if self._refused is not None:
                raise copy(self._refused)  # the same one would grow with every raise
            return False

    async def give(self, document: object | None) -> bool:
        """A parsed document that takes the place of the file; None gives it back. Raises as `refresh` does."""
        self._given = None if document is None else yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return await self.refresh()

    def _read(self) -> _Text:
        if self._given is not None:
            return _Text("user_config", self._given)
        if self.path is None:
            return NOTHING
        return _Text(self.path.name, read_text(self.path, self.path.name))

    async def _judge(self, text: _Text) -> bool:
        self._judged = text.hash
        if text.hash == self.status.hash:  # as it was, after something bad in between
            self._accept(replace(self.status, source=text.source))
            return False
        try:
            value = self._empty if text is NOTHING else await asyncio.to_thread(self._parse, text.source, text.text)
        except InvalidConfig as error:
            await asyncio.sleep(SAVING_S)
            if (later := await asyncio.to_thread(self._read)).hash != text.hash:
                return await self._judge(later)  # it was being written
            raise self._refuse(error) from None
        self._swap(text, value)
        self._accept(self.status)
        if self._spare is not None and text is not NOTHING:
            await asyncio.to_thread(_keep, self._spare, text.text)
        return True

    def _swap(self, text: _Text, value: T) -> None:
        self.value = value
        self.status = replace(self.status, source=text.source, hash=text.hash, loaded_at=time.time())
        log.info("config loaded", file=self.name, source=text.source, hash=text.hash)

    def _accept(self, status: HotStatus) -> None:
        self._refused = None
        self.status = replace(status, error=None, error_at=None)

    def _refuse(self, error: InvalidConfig) -> InvalidConfig:
        """Told once in the log, and in the status for as long as it lasts."""
        if self.status.error != error.message:
            self.status = replace(self.status, error=error.message, error_at=time.time())
            log.error("config refused", file=self.name, problems=error.message, at_work=self.status.hash)
        self._refused = error
        return copy(error)


async def _nobody() -> None:
    """A process that is alone has nobody to tell."""


class HotFiles:
    """All hot files of one process. `announce` tells the other processes to look at theirs."""

    def __init__(self, *files: Hot[Any], announce: Callable[[], Awaitable[None]] = _nobody) -> None:
        self._files = files
        self._announce = announce

    def __iter__(self) -> Iterator[Hot[Any]]:
        return iter(self._files)

    async def open(self) -> None:
        for file in self._files:
            await file.open()

    async def look(self) -> None:
        """At all of them; what is bad is in the log and in its status."""
        for file in self._files:
            with suppress(InvalidConfig):
                await file.refresh()

    async def reload(self) -> list[str]:
        """Looks at all of them, here and everywhere; names of those that have changed here.

        Raises InvalidConfig with the problems of all files; those that are good are at work even then.
        """
        changed, errors = [], []
        for file in self._files:
            try:
                changed += [file.name] if await file.refresh() else []
            except InvalidConfig as error:
                errors.append(error)
        await self._announce()
        if errors:
            raise InvalidConfig(
                "\n".join(error.message for error in errors), param=errors[0].param, hint=errors[0].hint
            )
        return changed

    async def give(self, documents: dict[str, object]) -> None:
        """Ray Serve's `user_config`: documents by the names of their files. Never raises: a replica would be lost."""
        for file in self._files:
            with suppress(InvalidConfig):
                await file.give(documents.get(file.name))

    async def watch(self) -> None:
        """Looks when something in their folders changes, and every five seconds. Never returns.

        Folders, as Kubernetes swaps a link beside the file and never touches the file itself.
        """
        while True:
            folders = {file.path.parent for file in self._files if file.path is not None}
            if there := [folder for folder in folders if folder.is_dir()]:
                with suppress(OSError):  # no watches left on this machine: looking goes on without them
                    await self._watch(there)
            await asyncio.sleep(LOOK_EVERY_MS / 1e3)
            await self.look()

    async def _watch(self, folders: list[Path]) -> None:
        """Until one of them has gone."""
        changes = awatch(
            *folders, watch_filter=None, recursive=False, rust_timeout=LOOK_EVERY_MS, yield_on_timeout=True
        )
        async with aclosing(changes):
            async for _ in changes:
                await self.look()
                if not all(folder.is_dir() for folder in folders):
                    return


def _keep(path: Path, text: str) -> None:
    """Whole or not at all, whoever else writes it. A full disk takes the spare away, not the service."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, "utf-8")
        scratch.replace(path)
    except OSError as error:
        log.warning("the last good version cannot be kept", path=str(path), reason=error.strerror)
