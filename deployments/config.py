"""Checks a Serve config file before anything starts: Ray ignores unknown keys, here each is an error with its line."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from serve.errors import ConfigError
from serve.settings import Settings

IMPORT_PATH = "deployments.app:build"
DEPLOYMENTS = ("Gateway", "Dispatcher", "TextEncoder", "Denoiser")

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """`line` counts from 1; `key` is the full path, such as `applications[0].args.model`."""

    file: str
    line: int
    key: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: {self.key}" if self.key else f"{self.file}:{self.line}"
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class Served:
    """What a checked file asks for."""

    host: str
    port: int
    settings: Settings


def check(path: Path) -> list[Problem]:
    """Everything that is wrong with a file, in the order of its lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        return [Problem(str(path), 1, "", f"cannot be read: {reason}", "config/serve.yaml is the one to begin with")]
    try:
        document = _Document(str(path), text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        return [Problem(str(path), mark.line + 1 if mark else 1, "", f"is not YAML: {reason}")]
    return sorted(document.problems(), key=lambda problem: problem.line)


def read(path: Path) -> Served:
    """Raises ConfigError with all problems of the file."""
    if problems := check(path):
        raise ConfigError(
            "\n".join(map(str, problems)), hint=f"correct {path}; docs/configuration.md explains every setting"
        )
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    http = ServeDeploySchema.model_validate(data).http_options
    return Served(http.host, http.port, Settings.model_validate(data["applications"][0].get("args") or {}))


def render(path: Path, port: int | None = None, data: Path | None = None) -> str:
    """The file as YAML with another port or data folder; the data folder becomes absolute."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if port is not None:
        config["http_options"] = (config.get("http_options") or {}) | {"port": port}
    for application in config["applications"]:
        args = application.get("args") or {}
        folder = data or Path(args.get("data") or Settings().data)
        application["args"] = args | {"data": str(folder.expanduser().absolute())}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


class _Document:
    """A parsed file that remembers on which line each key is."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines: dict[Key, int] = {}
        self._twice: list[Key] = []
        self._data = yaml.safe_load(text)
        self._locate(yaml.compose(text, Loader=yaml.SafeLoader), ())

    def problems(self) -> Iterator[Problem]:
        if not isinstance(self._data, dict):
            yield self._problem((), "is empty" if self._data is None else "is not a mapping", "see config/serve.yaml")
            return
        for key in self._twice:
            yield self._problem(key, "is given twice; only the last one would count", "remove one")
        yield from self._check(ServeDeploySchema, self._data, ())
        applications = self._data.get("applications")
        if not isinstance(applications, list) or len(applications) != 1:
            yield self._problem(("applications",), "holds the one application of this project", "see config/serve.yaml")
            return
        yield from self._check_application(applications[0], ("applications", 0))

    def _check_application(self, application: Any, at: Key) -> Iterator[Problem]:
        if not isinstance(application, dict):
            return
        if application.get("import_path") not in (None, IMPORT_PATH):
            found = application["import_path"]
            yield self._problem((*at, "import_path"), f"is {found!r}", f"it must be {IMPORT_PATH}")
        yield from self._check(Settings, application.get("args") or {}, (*at, "args"))
        for i, deployment in enumerate(application.get("deployments") or []):
            name = deployment.get("name") if isinstance(deployment, dict) else None
            if name is not None and name not in DEPLOYMENTS:
                hint = _suggestion(str(name), DEPLOYMENTS) or f"they are {', '.join(DEPLOYMENTS)}"
                yield self._problem((*at, "deployments", i, "name"), f"there is no deployment {name!r}", hint)

    def _check(self, model: type[BaseModel], value: Any, at: Key) -> Iterator[Problem]:
        yield from self._unknown_keys(model, value, at)
        yield from self._bad_values(model, value, at)

    def _unknown_keys(self, model: type[BaseModel], value: Any, at: Key) -> Iterator[Problem]:
        """Of `value` and all that is nested in it. Dicts that Ray takes unseen are validated here."""
        if not isinstance(value, dict):
            return
        for key, inner in value.items():
            field = model.model_fields.get(str(key))
            if field is None:
                yield self._problem((*at, key), "unknown key", _suggestion(str(key), tuple(model.model_fields)))
                continue
            nested, unseen = _nested_model(field.annotation)
            if nested is None:
                continue
            by_name = get_origin(field.annotation) is dict and isinstance(inner, dict)
            entries = inner.items() if by_name else enumerate(inner) if isinstance(inner, list) else [(None, inner)]
            for i, entry in entries:
                place = (*at, key) if i is None else (*at, key, i)
                check = self._check if unseen and isinstance(entry, dict) else self._unknown_keys
                yield from check(nested, entry, place)

    def _bad_values(self, model: type[BaseModel], value: Any, at: Key) -> Iterator[Problem]:
        try:
            model.model_validate(value)
        except ValidationError as error:
            told = set()
            for fault in error.errors():
                key = self._existing(at, fault["loc"], missing=fault["type"] == "missing")
                if fault["type"] != "extra_forbidden" and key not in told:
                    told.add(key)
                    yield self._problem(key, fault["msg"].removeprefix("Value error, "))

    def _existing(self, at: Key, location: Key, missing: bool) -> Key:
        """The part of pydantic's location that is in the file; it also names members of unions."""
        key = at
        for part in location:
            if (*key, part) not in self._lines:
                return (*key, part) if missing and part == location[-1] else key
            key = (*key, part)
        return key

    def _problem(self, key: Key, message: str, hint: str | None = None) -> Problem:
        line = next((self._lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self._lines), 1)
        return Problem(self._file, line, _path(key), message, hint)

    def _locate(self, node: yaml.Node | None, at: Key) -> None:
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self._lines[*at, i] = item.start_mark.line + 1
                self._locate(item, (*at, i))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*at, key.value)
                if place in self._lines:
                    self._twice.append(place)
                self._lines[place] = key.start_mark.line + 1
                self._locate(value, place)


def _nested_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The pydantic model in an annotation, and whether Ray would also take any dict in its place."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    parts = [_nested_model(part) for part in get_args(annotation)]
    nested = next((model for model, _ in parts if model), None)
    loose = any(get_origin(part) is dict or part is dict for part in get_args(annotation))
    return nested, nested is not None and (loose or any(unseen for _, unseen in parts))


def _suggestion(key: str, valid: tuple[str, ...]) -> str | None:
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def _path(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deployments.config")
    command = parser.add_subparsers(required=True).add_parser(
        "check", help="say what is wrong with a Serve config file"
    )
    command.add_argument("file", type=Path)
    command.add_argument("--json", action="store_true", help="a list of {file, line, key, message, hint}")
    options = parser.parse_args()
    problems = check(options.file)
    if options.json:
        print(json.dumps([asdict(problem) for problem in problems]))
    else:
        print("\n".join(map(str, problems)) or f"{options.file}: ok")
    sys.exit(2 if problems else 0)


if __name__ == "__main__":
    main()
