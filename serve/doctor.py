"""What would stop a start on this machine, each with the command that fixes it. Imports neither torch nor Ray."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError

from serve import adapters, controlnets
from serve.errors import ConfigError, WeightsError
from serve.part_files import PartFiles
from serve.port import check_port
from serve.presets.catalog import check_file, parse
from serve.settings import Settings
from serve.tokens import PromptTokens
from serve.weights import bytes_of, resolve, verify

PROJECT = "zimage-serve"
ROOT = Path(__file__).parents[1]
INSTALL = f"{sys.executable} -m pip install -c constraints.txt -e ."
MIN_DATA_FREE = 64 << 20
GOOD_DATA_FREE = 1 << 30
MIN_SHM = 256 << 20
RAY_MEMORY = 2 << 30  # of Ray's processes and ours, without weights
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a config file asks of this machine, as far as it can be read."""

    host: str
    port: int
    gpus: float
    settings: Settings

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Defaults in place of whatever is wrong: the config check tells that."""
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
            application = data["applications"][0]
            deployments = application.get("deployments") or []
            gpus = sum((entry.get("ray_actor_options") or {}).get("num_gpus", 0) for entry in deployments)
            http = data.get("http_options") or {}
            return cls(
                http.get("host", "0.0.0.0"), http.get("port", 8000), gpus, Settings(**(application.get("args") or {}))
            )
        except (OSError, yaml.YAMLError, ValidationError, LookupError, TypeError, AttributeError):
            return cls("127.0.0.1", 8000, 0, Settings())


def settings_of(config: Path) -> Settings:
    """Of a Serve config file. Raises ConfigError."""
    try:
        served = yaml.safe_load(config.read_text(encoding="utf-8"))
        return Settings(**(served["applications"][0].get("args") or {}))
    except (OSError, yaml.YAMLError, ValidationError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{config} is not a config file that can be read", hint=f"python -m deployments.config check {config}"
        ) from error


def examine(config: Path) -> list[Finding]:
    command = [sys.executable, "-m", "deployments.config", "check", str(config), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as checker:
        findings = examine_machine(Plan.read(config))
        output, errors = checker.communicate()
    return [_config(config, output, errors), *findings]


def examine_machine(plan: Plan) -> list[Finding]:
    """All but the config file itself, which only Ray can judge."""
    return [
        _python(),
        _packages(),
        *_gpu(plan),
        *_weights(plan),
        *_parts(plan, "adapters", adapters.FILES),
        *_parts(plan, "controlnets", controlnets.FILES),
        _presets(plan),
        _port(plan),
        _data(plan),
        *_memory(plan),
        *_ray(),
    ]


def render(findings: list[Finding], *, as_json: bool) -> str:
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=1)
    lines = []
    for finding in findings:
        lines.append(
            f"{typer.style(f'{finding.status:<4}', COLOURS[finding.status])}  {finding.check:<10} {finding.detail}"
        )
        if finding.fix:
            lines.append(f"      {'':<10} fix: {finding.fix}")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of this project, what it runs on, and the device."""
    found = {"zimage": _project()["version"], "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "ray"):
        found[name] = _installed(name) or "not installed"
    cuda = _torch_cuda()
    gpus = _gpus()
    return found | {"device": ", ".join(gpus) if gpus and cuda else f"cpu ({platform.machine()})"}


def _python() -> Finding:
    found, wanted = platform.python_version(), SpecifierSet(_project()["requires-python"])
    if found in wanted:
        return Finding("python", "ok", found)
    return Finding("python", "fail", f"{found}, but {wanted} is needed", "make clean serve PYTHON=python3.12")


def _packages() -> Finding:
    wrong = []
    wanted = [Requirement(text) for text in _project()["dependencies"]]
    for requirement in wanted:
        found = _installed(requirement.name)
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, but {requirement.specifier} is needed")
    if wrong:
        return Finding("packages", "fail", "; ".join(wrong), INSTALL)
    return Finding("packages", "ok", f"{len(wanted)} in range, torch {_installed('torch')}, ray {_installed('ray')}")


def _config(path: Path, output: str, errors: str) -> Finding:
    try:
        problems = json.loads(output)
    except ValueError:
        last = (errors.strip().splitlines() or ["no answer"])[-1]
        return Finding("config", "fail", f"{path} could not be checked: {last}", INSTALL)
    if not problems:
        return Finding("config", "ok", str(path))
    told = [
        f"{problem['file']}:{problem['line']}: {problem['key']}: {problem['message']}"
        + (f" ({problem['hint']})" if problem["hint"] else "")
        for problem in problems
    ]
    return Finding("config", "fail", "; ".join(told), f"correct line {problems[0]['line']} of {path}")


def _gpu(plan: Plan) -> Iterator[Finding]:
    gpus, cuda, device = _gpus(), _torch_cuda(), plan.settings.device
    needed = device == "cuda" or plan.gpus > 0
    if gpus and cuda:
        yield Finding("gpu", "ok", f"{', '.join(gpus)}; torch for CUDA {cuda}")
    elif gpus and device != "cpu":
        fix = f"{sys.executable} -m pip install --force-reinstall torch  (from an index that has CUDA builds)"
        yield Finding("gpu", "fail" if needed else "warn", f"{', '.join(gpus)}, but torch is a CPU build", fix)
    elif needed:
        why = "device is cuda" if device == "cuda" else f"the deployments ask for {plan.gpus:g} GPUs"
        yield Finding("gpu", "fail", f"{why}, and nvidia-smi shows none", "make serve CONFIG=config/serve.yaml")
    else:
        yield Finding("gpu", "ok", "none: pictures are drawn on the CPU")
    if gpus and plan.gpus > len(gpus):
        yield Finding("gpus", "fail", f"{plan.gpus:g} asked for, {len(gpus)} there", "lower num_gpus or num_replicas")


def _weights(plan: Plan) -> Iterator[Finding]:
    for model in plan.settings.served:
        yield from _weights_of(plan.settings.of(model))


def _weights_of(settings: Settings) -> Iterator[Finding]:
    try:
        folder = resolve(settings)
        verify(folder)
    except WeightsError as error:
        yield Finding("weights", "fail", error.message, error.hint)
        return
    yield Finding("weights", "ok", f"{settings.model}, {_size(bytes_of(folder))}, whole: {folder}")
    try:
        count = PromptTokens(folder / "tokenizer").count("a red fox")
    except WeightsError as error:
        yield Finding("tokenizer", "fail", error.message, error.hint)
        return
    yield Finding("tokenizer", "ok", f"'a red fox' is {count} tokens with the chat template")


def _parts(plan: Plan, kind: str, files: PartFiles[Any, Any]) -> Iterator[Finding]:
    """The adapters or ControlNets of every model."""
    for model in plan.settings.served:
        settings = plan.settings.of(model)
        try:
            problems = files.problems(settings, resolve(settings))
        except WeightsError:  # of the model: told already
            continue
        for error in problems:
            yield Finding(kind, "fail", error.message, error.hint)
        if (parts := files.parts(settings)) and not problems:
            yield Finding(kind, "ok", f"{', '.join(parts)}: whole, and for this model")


def _presets(plan: Plan) -> Finding:
    path = plan.settings.presets
    if path is None:
        return Finding("presets", "ok", "none")
    if problems := check_file(path, plan.settings):
        told = "; ".join(map(str, problems))
        return Finding("presets", "fail", told, problems[0].hint or f"correct line {problems[0].line} of {path}")
    catalog = parse(path.name, path.read_text(encoding="utf-8"), plan.settings)
    return Finding(
        "presets", "ok", f"{path}: {len(catalog.presets)} presets, {len(catalog.styles)} styles for this model"
    )


def _port(plan: Plan) -> Finding:
    try:
        check_port(plan.host, plan.port)
    except ConfigError as error:
        return Finding("port", "fail", error.message, error.hint)
    return Finding("port", "ok", f"{plan.port} on {plan.host} is free")


def _data(plan: Plan) -> Finding:
    folder = plan.settings.data.absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding("data", "fail", f"{folder} cannot be written", "make serve DATA=/some/other/dir")
    free = shutil.disk_usage(there).free
    detail = f"{folder}, {_size(free)} free"
    if free < GOOD_DATA_FREE:
        status: Status = "fail" if free < MIN_DATA_FREE else "warn"
        return Finding("data", status, detail, f"free space on {there}, or: make serve DATA=/some/other/dir")
    return Finding("data", "ok", detail)


def _memory(plan: Plan) -> Iterator[Finding]:
    available = _available_memory()
    need = RAY_MEMORY + sum(_weights_in_memory(plan.settings.of(model)) for model in plan.settings.served)
    detail = f"{_size(available)} available, about {_size(need)} needed"
    if available < need:
        yield Finding("memory", "warn", detail, "end other programs, or use a smaller model")
    else:
        yield Finding("memory", "ok", detail)
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    if shared < MIN_SHM:
        fix = "mount -o remount,size=1g /dev/shm  (a container: docker run --shm-size=1g)"
        yield Finding("shm", "warn", f"/dev/shm has {_size(shared)}, so Ray would keep objects on disk", fix)
    else:
        yield Finding("shm", "ok", f"/dev/shm has {_size(shared)}")


def _ray() -> Iterator[Finding]:
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    note = Path(folder, "ray", "ray_current_cluster")
    if not note.is_file():
        yield Finding("ray", "ok", "no other Ray is noted on this machine")
    elif _answers(address := note.read_text().strip()):
        detail = f"another Ray runs at {address}: make serve leaves it alone, plain `serve run` would join it"
        yield Finding("ray", "warn", detail, "nothing to do for make serve; to end that Ray: ray stop")
    else:
        detail = f"{note} names {address}, where nothing answers: plain `serve run` would wait for it for ever"
        yield Finding("ray", "warn", detail, f"rm {note}")
    if named := os.environ.get("RAY_ADDRESS"):
        detail = f"RAY_ADDRESS is {named}: make serve ignores it, plain `serve run` would join that Ray"
        yield Finding("ray_address", "warn", detail, "unset RAY_ADDRESS")
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in (None, "token", "disabled"):
        yield Finding("ray_auth", "fail", f"RAY_AUTH_MODE is {mode!r}", "export RAY_AUTH_MODE=token  (or disabled)")
    else:
        unset = "not set: make serve takes a token of its own; set it for plain `serve run`"
        yield Finding("ray_auth", "ok", f"RAY_AUTH_MODE is {mode or unset}")


def _project() -> dict[str, Any]:
    """`version`, `requires-python` and `dependencies`: of the source tree, else of the installed package."""
    pyproject = ROOT / "pyproject.toml"
    if pyproject.is_file():
        project: dict[str, Any] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        return project
    metadata = importlib.metadata.metadata(PROJECT)
    requirements = importlib.metadata.requires(PROJECT) or []
    return {
        "version": metadata["Version"],
        "requires-python": metadata["Requires-Python"],
        "dependencies": [text for text in requirements if "extra ==" not in text],
    }


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> str | None:
    """The CUDA version that torch was built for, without importing it."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    found = re.search(r"^cuda.*= '(.+)'", version.read_text(), re.MULTILINE) if version and version.is_file() else None
    return found[1] if found else None


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=3, check=False)
    except subprocess.TimeoutExpired:
        return []
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _available_memory() -> int:
    """Of the machine, or less where a container is given less."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    available = int(found[1]) * 1024 if found else 0
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        return min(available, int(most) - int(used.read_text()))
    return available


def _weights_in_memory(settings: Settings) -> int:
    """On the CPU bf16 weights become fp32."""
    try:
        size = bytes_of(resolve(settings))
    except WeightsError:
        return 0
    return size if settings.device == "cuda" or _gpus() else 2 * size


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=0.5):
            return True
    except (OSError, ValueError):
        return False


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
