"""Checks a Serve config file before anything starts: Ray ignores unknown keys, here each is an error with its line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.scaling import SCALED, check_scaling
from serve.document import Document, Key, NoDocument, Problem, read_text, suggestion
from serve.errors import ConfigError
from serve.presets.catalog import check_file, problems_of
from serve.presets.hot import NAME as PRESETS
from serve.settings import Settings

IMPORT_PATH = "deployments.app:build"
DEPLOYMENTS = ("Gateway", "Dispatcher", "TextEncoder", "Denoiser")
HOT = (PRESETS,)  # what a Gateway's `user_config` may hold


@dataclass(frozen=True, slots=True)
class Served:
    """What a checked file asks for."""

    host: str
    port: int
    settings: Settings


def check(path: Path) -> list[Problem]:
    """Everything that is wrong with a file, in the order of its lines."""
    try:
        document = Document(str(path), read_text(path, str(path), "config/serve.yaml is the one to begin with"))
    except NoDocument as error:
        return [error.problem]
    found = sorted(_problems(document), key=lambda problem: problem.line)
    return found or _hot_problems(document)


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
        application["args"] = args | {"data": str(folder.expanduser().absolute())} | _absolute_presets(args)
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _hot_problems(document: Document) -> list[Problem]:
    """Of hot files: where the Gateways' `user_config` gives one it counts, else the file that the settings name."""
    application = document.data["applications"][0]
    settings = Settings.model_validate(application.get("args") or {})
    at, given = _user_config(application)
    found = [document.problem((*at, name), "unknown key", suggestion(name, HOT)) for name in given if name not in HOT]
    if PRESETS in given:
        found += problems_of(document, given[PRESETS], (*at, PRESETS), settings)
    elif settings.presets is not None:
        found += check_file(settings.presets, settings)
    return found


def _user_config(application: dict[str, Any]) -> tuple[Key, dict[str, Any]]:
    for i, deployment in enumerate(application.get("deployments") or []):
        if deployment["name"] == "Gateway":
            return ("applications", 0, "deployments", i, "user_config"), deployment.get("user_config") or {}
    return (), {}


def _absolute_presets(args: dict[str, Any]) -> dict[str, str]:
    presets = Settings.model_validate(args).presets
    return {} if presets is None else {"presets": str(presets.expanduser().absolute())}


def _problems(document: Document) -> Iterator[Problem]:
    yield from document.outline("see config/serve.yaml")
    if not isinstance(document.data, dict):
        return
    yield from document.check(ServeDeploySchema, document.data)
    applications = document.data.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        yield document.problem(("applications",), "holds the one application of this project", "see config/serve.yaml")
        return
    yield from _check_application(document, applications[0], ("applications", 0))


def _check_application(document: Document, application: Any, at: Key) -> Iterator[Problem]:
    if not isinstance(application, dict):
        return
    if application.get("import_path") not in (None, IMPORT_PATH):
        found = application["import_path"]
        yield document.problem((*at, "import_path"), f"is {found!r}", f"it must be {IMPORT_PATH}")
    args = application.get("args") or {}
    yield from document.check(Settings, args, (*at, "args"))
    models = args.get("models") if isinstance(args, dict) else None
    names = deployments_of(models if isinstance(models, dict) else {})
    given = [name.get("name") if isinstance(name, dict) else None for name in application.get("deployments") or []]
    for i, name in enumerate(given):
        if name is not None and name not in names:
            hint = suggestion(str(name), names) or f"they are {', '.join(names)}"
            yield document.problem((*at, "deployments", i, "name"), f"there is no deployment {name!r}", hint)
    for name in names[len(DEPLOYMENTS) :]:
        if name not in given:  # Ray's own numbers for it would fit nothing
            first, _, model = name.partition("-")
            hint = f"copy what {first} has"
            yield document.problem((*at, "args", "models", model), f"deployments have no {name!r}", hint)
    yield from check_scaling(document, application, at)


def deployments_of(models: Iterable[str]) -> tuple[str, ...]:
    """By name: those of the first model, and two for each other."""
    return *DEPLOYMENTS, *(f"{name}-{model}" for model in models for name in SCALED)


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
