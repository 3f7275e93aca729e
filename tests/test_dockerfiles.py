"""ops/Dockerfile*: what can be said of them without building them."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from deployments.config import check

FILES = sorted(Path("ops").glob("Dockerfile*"))
KNOWN = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "CMD"}
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE))
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(words[0], words[1]) for words in found]


def test_there_is_one_for_gpus_and_one_for_cpus() -> None:
    assert [path.name for path in FILES] == ["Dockerfile", "Dockerfile.cpu"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_instruction_is_one(path: Path) -> None:
    assert {name for name, _ in instructions(path)} <= KNOWN
    assert instructions(path)[0][0] == "FROM"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_is_copied_is_there_and_not_ignored(path: Path) -> None:
    allowed = [line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [source for name, rest in instructions(path) if name == "COPY" for source in rest.split()[:-1]]
    assert {"serve", "deployments", "config"} <= set(sources)
    for source in sources:
        assert Path(source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is in .dockerignore"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_is_installed_has_a_name_here(path: Path) -> None:
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', path.read_text())
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    needed = {PROJECT["readme"], *(name for name in PROJECT["license-files"] if "/" not in name)}
    copied = {source for name, rest in instructions(path) if name == "COPY" for source in rest.split()[:-1]}
    assert needed <= copied


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_runs_as_a_user_on_a_supported_python(path: Path) -> None:
    found = dict(instructions(path))
    assert found["USER"] not in ("root", "0")
    (version,) = re.findall(r"^python:(3\.\d+)-slim", found["FROM"])
    assert version in ("3.11", "3.12")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_its_command_starts_a_file_that_is_right(path: Path) -> None:
    command = json.loads(dict(instructions(path))["CMD"])
    assert command[:3] == ["python", "-m", "deployments.run"]
    assert check(Path(command[3])) == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_ray_is_as_the_start_of_the_project_has_it(path: Path) -> None:
    """`serve deploy` and KubeRay start no `deployments.run`, which would set these."""
    source = Path("deployments/run.py").read_text()
    for name, value in re.findall(r"(RAY_SERVE_[A-Z_]+)=(\S+)", path.read_text()):
        assert f'"{name}": "{value}"' in source
    assert len(re.findall(r'"RAY_SERVE_', source)) == len(re.findall(r"RAY_SERVE_", path.read_text()))
