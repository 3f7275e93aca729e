"""Weights from the hub to this machine: size and disk first, then files that go on where they stopped.

huggingface_hub throws a part of a file away when its process ends, so files are fetched here, into the places in its
cache (or in a plain folder) where it and diffusers look for them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, hf_raise_for_status
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from serve.architecture import PIPELINE
from serve.errors import WeightsError
from serve.weights import INDEX, STEMS, HubId, check_pipeline, verify

SPARE = 1.05
PARALLEL = 4
ATTEMPTS = 5
RETRY_WAIT_S = 1.0
READ_TIMEOUT_S = 20.0
CHUNK = 1 << 20

Advance = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`etag` is the hub's hash of the content: SHA-256 of a large file, git's blob SHA-1 of a small one."""

    name: str
    size: int
    etag: str
    path: Path

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def missing(self) -> int:
        if self.path.is_file() and self.path.stat().st_size == self.size:
            return 0
        return self.size - min(self.size, self.part.stat().st_size if self.part.is_file() else 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a download will fetch, and into which folder."""

    hub_id: HubId
    commit: str
    files: tuple[RemoteFile, ...]
    folder: Path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        return sum(file.missing for file in self.files)


def download(hub_id: HubId, to: Path | None = None, console: Console | None = None) -> Path:
    """Fetches a model into the Hugging Face cache, or whole into the folder `to`; returns the model's folder."""
    console = console or Console()
    plan = make_plan(hub_id, to)
    console.print(
        f"{hub_id}: {len(plan.files)} files, {_gb(plan.size)}; to fetch: {_gb(plan.missing)}", highlight=False
    )
    console.print(f"into {plan.folder}", highlight=False, soft_wrap=True)
    check_disk(plan)
    with _progress(console, plan.size, plan.size - plan.missing) as advance:
        _explained(hub_id, lambda: _fetch_all(plan, advance))
    folder = to or _explained(hub_id, lambda: _link_snapshot(plan))
    verify(folder)
    return folder


def make_plan(hub_id: HubId, to: Path | None) -> Plan:
    """Asks the hub what there is. Raises WeightsError when it is no model to serve, or not to be had."""
    info = _explained(hub_id, lambda: HfApi().model_info(hub_id.repo, revision=hub_id.revision, files_metadata=True))
    names = [sibling.rfilename for sibling in info.siblings or []]
    if INDEX not in names:
        raise WeightsError(
            f"{hub_id} has no {INDEX}: it is not in diffusers' layout",
            hint=f"choose the {PIPELINE} form of the model; single-file checkpoints cannot be served",
        )
    index = _explained(hub_id, lambda: _get(hub_id.repo, INDEX, str(info.sha)))
    check_pipeline(json.loads(index), f"{hub_id}/{INDEX}")
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id.repo, repo_type="model"))
    files = _remote_files(info, needed(names, str(hub_id)), cache / "blobs", to)
    return Plan(hub_id, str(info.sha), files, to or cache)


def needed(names: list[str], model: str) -> list[str]:
    """The files that a ZImagePipeline loads, and its licence; no variants, other formats, or sample pictures."""
    wanted = [INDEX, "LICENSE*", "NOTICE*", "README.md", "scheduler/*.json", "tokenizer/*"]
    for part, stem in STEMS.items():
        weights = f"{part}/{stem}.safetensors"
        if f"{weights}.index.json" in names:
            wanted += [f"{weights}.index.json", f"{part}/{stem}-?????-of-?????.safetensors"]
        elif weights in names:
            wanted.append(weights)
        else:
            raise WeightsError(
                f"{model} has neither {weights} nor {weights}.index.json",
                hint="choose a repository with .safetensors weights; pickled ones (.bin) are not loaded",
            )
        wanted += [f"{part}/config.json", f"{part}/generation_config.json"]
    return [name for name in names if any(fnmatch(name, pattern) for pattern in wanted)]


def check_disk(plan: Plan) -> None:
    need = int(plan.missing * SPARE)
    there = next(folder for folder in (plan.folder, *plan.folder.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if need > free:
        raise WeightsError(
            f"{plan.folder} has {_gb(free)} free, the download needs {_gb(need)} (5 % spare included)",
            hint=f"free {_gb(need - free)}, or use another disk: zimage download {plan.hub_id} --to FOLDER, "
            "or HF_HOME=/other/disk for the whole cache",
        )


def _remote_files(info: ModelInfo, names: list[str], blobs: Path, to: Path | None) -> tuple[RemoteFile, ...]:
    def remote(name: str) -> RemoteFile:
        sibling = siblings[name]
        etag = str(sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
        return RemoteFile(name, sibling.size or 0, etag, to / name if to else blobs / etag)

    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    return tuple(remote(name) for name in names)


def _get(repo: str, name: str, commit: str) -> bytes:
    response = get_session().get(
        hf_hub_url(repo, name, revision=commit), headers=build_hf_headers(), timeout=READ_TIMEOUT_S
    )
    hf_raise_for_status(response)
    return response.content


def _fetch_all(plan: Plan, advance: Advance) -> None:
    stop = threading.Event()
    largest_first = sorted((file for file in plan.files if file.missing), key=lambda file: -file.size)
    with ThreadPoolExecutor(PARALLEL) as pool:
        fetches = [pool.submit(_fetch, plan, file, advance, stop) for file in largest_first]
        try:
            for fetch in as_completed(fetches):
                fetch.result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch(plan: Plan, file: RemoteFile, advance: Advance, stop: threading.Event) -> None:
    """One file, complete and with the hub's hash, at its path. What came before stays in `.part`."""
    file.part.parent.mkdir(parents=True, exist_ok=True)
    with file.part.open("ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WeightsError(f"{plan.hub_id} is being downloaded by another process", hint="wait for it") from None
        _fetch_rest(hf_hub_url(plan.hub_id.repo, file.name, revision=plan.commit), out, file.size, advance, stop)
        if stop.is_set():
            return
    if _digest(file.part, file.etag) != file.etag:
        file.part.unlink()
        raise WeightsError(f"{file.name} arrived damaged", hint=f"run again: zimage download {plan.hub_id}")
    file.part.replace(file.path)


def _fetch_rest(url: str, out: IO[bytes], size: int, advance: Advance, stop: threading.Event) -> None:
    failures = 0
    while (have := out.tell()) < size and not stop.is_set():
        try:
            _stream(url, out, advance, stop)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            failures = 1 if out.tell() > have else failures + 1
            if failures >= ATTEMPTS or not _transient(error):
                raise
            stop.wait(RETRY_WAIT_S * 2 ** (failures - 1))


def _stream(url: str, out: IO[bytes], advance: Advance, stop: threading.Event) -> None:
    have = out.tell()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if have and response.status_code != httpx2.codes.PARTIAL_CONTENT:
            out.seek(0)
            out.truncate()
            advance(-have)
        for chunk in response.iter_bytes(CHUNK):
            out.write(chunk)
            advance(len(chunk))
            if stop.is_set():
                return


def _transient(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in (408, 429, 500, 502, 503, 504)


def _digest(path: Path, etag: str) -> str:
    with path.open("rb") as file:
        if len(etag) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        data = file.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _link_snapshot(plan: Plan) -> Path:
    """Makes the cache's snapshot of the fetched blobs. A link to a damaged blob is whole again by now."""
    disable_progress_bars()
    names = [file.name for file in plan.files]
    return Path(snapshot_download(plan.hub_id.repo, revision=plan.hub_id.revision, allow_patterns=names))


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Advance]:
    if console.is_terminal:
        columns = (
            BarColumn(),
            "{task.percentage:>3.0f} %",
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total, completed=done)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(console, total, done).advance


class _Lines:
    """A line per 5 %, for logs."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console, self._total, self._done, self._first = console, total, done, done
        self._said = self._twentieths()
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._twentieths() > self._said:
                self._said = self._twentieths()
                rate = (self._done - self._first) / max(1e-3, time.monotonic() - self._began)
                line = f"{self._said * 5:3d} %  {_gb(self._done)} of {_gb(self._total)}, {rate / 1e6:.0f} MB/s"
                self._console.print(line, highlight=False)

    def _twentieths(self) -> int:
        return 20 * self._done // max(1, self._total)


def _explained(hub_id: HubId, act: Callable[[], T]) -> T:
    """Runs `act`; what the hub, the network or the disk refuse becomes a WeightsError with a way out."""
    again = "run the same command again: it goes on where it stopped"
    try:
        return act()
    except OfflineModeIsEnabled:
        raise WeightsError("HF_HUB_OFFLINE is set, so nothing is fetched", hint="unset HF_HUB_OFFLINE") from None
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{hub_id.repo}"
        raise WeightsError(
            f"{hub_id} is gated: its owner wants a licence accepted", hint=f"accept it at {page}, then: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(
            f"{hub_id.repo} has no revision {hub_id.revision!r}", hint=f"zimage download {hub_id.repo}"
        ) from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"there is no model {hub_id.repo} at {constants.ENDPOINT}, or it is private",
            hint="check the name; for a private model: hf auth login, or set HF_TOKEN",
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "hf auth login, or set HF_TOKEN to a token that may read it" if status in (401, 403) else again
        raise WeightsError(f"{constants.ENDPOINT} answered {status} for {hub_id}", hint=hint) from None
    except HFValidationError as error:
        raise WeightsError(f"{hub_id} is not a hub id: {error}", hint="write ORG/NAME") from None
    except httpx2.TransportError as error:
        raise WeightsError(
            f"cannot reach {constants.ENDPOINT} ({type(error).__name__}: {error})",
            hint=f"check the network and HTTPS_PROXY, then {again}; without a network, copy a folder made elsewhere "
            f"with: zimage download {hub_id} --to FOLDER",
        ) from None
    except OSError as error:
        fix = f"free some space and {again}" if error.errno == errno.ENOSPC else "use a folder that can be written"
        raise WeightsError(f"cannot write {error.filename or 'the download'}: {error.strerror}", hint=fix) from None


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
