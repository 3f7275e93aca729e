"""YAML that remembers its lines: whatever is wrong with a file is told with file, line, key and reason."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

Key = tuple[str | int, ...]
MOST_NAMES = 20  # in a hint


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


class NoDocument(Exception):
    """A file that cannot be read, or is not YAML."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_text(path: Path, name: str, hint: str | None = None) -> str:
    """Raises NoDocument. `name` is what the problem calls the file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise NoDocument(Problem(name, 1, "", f"cannot be read: {reason}", hint)) from error


class Document:
    """A parsed text that remembers on which line each key is. Raises NoDocument where it is not YAML."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines: dict[Key, int] = {}
        self._twice: list[Key] = []
        try:
            self.data = yaml.safe_load(text)
            self._locate(yaml.compose(text, Loader=yaml.SafeLoader), ())
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or str(error)
            line = mark.line + 1 if mark else 1
            raise NoDocument(Problem(file, line, "", f"is not YAML: {reason}")) from error

    def outline(self, hint: str | None = None) -> Iterator[Problem]:
        """Of the text as a whole: what is not a mapping has no keys to be checked."""
        if not isinstance(self.data, dict):
            yield self.problem((), "is empty" if self.data is None else "is not a mapping", hint)
        for key in self._twice:
            yield self.problem(key, "is given twice; only the last one would count", "remove one")

    def check(self, model: type[BaseModel], value: Any, at: Key = ()) -> Iterator[Problem]:
        """Unknown keys and bad values of `value`, which is in the text at `at`."""
        yield from self._unknown_keys(model, value, at)
        yield from self._bad_values(model, value, at)

    def _unknown_keys(self, model: type[BaseModel], value: Any, at: Key) -> Iterator[Problem]:
        """Of `value` and all that is nested in it. Dicts that Ray takes unseen are validated here."""
        if not isinstance(value, dict):
            return
        for key, inner in value.items():
            field = model.model_fields.get(str(key))
            if field is None:
                yield self.problem((*at, key), "unknown key", suggestion(str(key), tuple(model.model_fields)))
                continue
            nested, unseen = _nested_model(field.annotation)
            if nested is None:
                continue
            by_name = get_origin(field.annotation) is dict and isinstance(inner, dict)
            entries = inner.items() if by_name else enumerate(inner) if isinstance(inner, list) else [(None, inner)]
            for i, entry in entries:
                place = (*at, key) if i is None else (*at, key, i)
                check = self.check if unseen and isinstance(entry, dict) else self._unknown_keys
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
                    yield self.problem(key, fault["msg"].removeprefix("Value error, "))

    def _existing(self, at: Key, location: Key, missing: bool) -> Key:
        """The part of pydantic's location that is in the file; it also names members of unions."""
        key = at
        for part in location:
            if (*key, part) not in self._lines:
                return (*key, part) if missing and part == location[-1] else key
            key = (*key, part)
        return key

    def problem(self, key: Key, message: str, hint: str | None = None) -> Problem:
        line = next((self._lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self._lines), 1)
        return Problem(self._file, line, path_of(key), message, hint)

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


def suggestion(key: str, valid: tuple[str, ...]) -> str | None:
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def one_of(names: tuple[str, ...], route: str) -> str:
    """A hint; where there are many, `route` of the API tells the others."""
    more = f", and {len(names) - MOST_NAMES} more: {route}" if len(names) > MOST_NAMES else ""
    return f"send one of: {', '.join(names[:MOST_NAMES])}{more}"


def path_of(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")
