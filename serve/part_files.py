"""Files that a setting names, adapters' and ControlNets': where they lie, and whether they can be served. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, Protocol, TypeVar

from serve.adapter_settings import AdapterSettings
from serve.errors import WeightsError
from serve.settings import Settings
from serve.weights import HubId

_CHUNK = 1 << 20


class _Located(Protocol):
    @property
    def path(self) -> Path: ...


Part = TypeVar("Part", bound=AdapterSettings)
File = TypeVar("File", bound=_Located)


@dataclass(frozen=True, slots=True)
class PartFiles(Generic[Part, File]):
    """Of one kind: its setting, and for a model's folder what opens one for it, or raises WeightsError.

    Looks only at this machine's disk, never at the network.
    """

    parts: Callable[[Settings], Mapping[str, Part]]
    opening: Callable[[Path], Callable[[str, Part], File]]

    def open(self, settings: Settings, model: Path) -> dict[str, File]:
        """All, by name, for the model in this folder. Raises WeightsError for the first that cannot be served."""
        parts = self.parts(settings)
        if not parts:
            return {}
        opened = self.opening(model)
        return {name: opened(name, part) for name, part in parts.items()}

    def located(self, settings: Settings, model: Path) -> dict[str, Part]:
        """The setting itself, verified as by `open`, each with the path of its file."""
        parts = self.parts(settings)
        return {
            name: parts[name].model_copy(update={"weights": str(file.path), "file": None})
            for name, file in self.open(settings, model).items()
        }

    def problems(self, settings: Settings, model: Path) -> list[WeightsError]:
        """Of every one that cannot be served, why."""
        parts, found = self.parts(settings), []
        if not parts:
            return []
        opened = self.opening(model)
        for name, part in parts.items():
            try:
                opened(name, part)
            except WeightsError as error:
                found.append(error)
        return found


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def locate(kind: str, name: str, part: AdapterSettings) -> Path:
    """Raises WeightsError where there is no such file, or more than one."""
    path = Path(part.weights).expanduser()
    if path.is_file():
        return path.resolve()
    folder = path if path.is_dir() else _snapshot(part.weights)
    if folder is None:
        hub_id = HubId.parse(part.weights)
        fetch = f"hf download {hub_id.repo} --revision {hub_id.revision}" if hub_id else None
        raise WeightsError(
            f"{kind} {name!r}: {part.weights} is not on this machine",
            param=f"{kind}s.{name}.weights",
            hint=fetch or f"set {kind}s.{name}.weights to a .safetensors file, a folder that holds one, or a hub id",
        )
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if part.file is not None and part.file not in files:
        _not_there(f"{kind}s.{name}", folder, f"holds no {part.file}", files)
    if part.file is None and len(files) != 1:
        _not_there(f"{kind}s.{name}", folder, f"holds {len(files)} .safetensors files", files)
    return (folder / (part.file or files[0])).resolve()


def _not_there(setting: str, folder: Path, what: str, files: list[str]) -> NoReturn:
    there = f"set {setting}.file to one of: {', '.join(files)}" if files else "point at the file itself"
    kind, _, name = setting.partition("s.")
    raise WeightsError(f"{kind} {name!r}: {folder} {what}", param=f"{setting}.file", hint=there)


def _snapshot(weights: str) -> Path | None:
    hub_id = HubId.parse(weights)
    if hub_id is None:
        return None
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only hub ids need it
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
