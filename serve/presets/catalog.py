"""The presets of the served models, out of a text that was validated whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import structlog

from serve.document import Document, Key, NoDocument, Problem, read_text, suggestion
from serve.errors import InvalidConfig
from serve.presets.file import Alias, Preset, PresetsFile, Style
from serve.settings import Settings
from serve.sizes import WrongSize, parse_size

S = TypeVar("S", bound=Style)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Catalog:
    """Of the first model, and of the `others`. By name, in the file's order. Without a file it is empty."""

    presets: Mapping[str, Preset] = field(default_factory=dict)
    styles: Mapping[str, Style] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    others: Mapping[str, Catalog] = field(default_factory=dict)

    def of(self, model: str) -> Catalog:
        """That of the first model, but for a name of another one."""
        return self.others.get(model, self)

    def home(self, preset: str | None, style: str | None) -> str | None:
        """The model to draw with where none was asked for: another than the first, if only that one has them."""
        if self.has(preset, style):
            return None
        return next((model for model, catalog in self.others.items() if catalog.has(preset, style)), None)

    def has(self, preset: str | None, style: str | None) -> bool:
        return (preset is None or preset in self.presets) and (style is None or style in self.styles)


def parse(file: str, text: str, settings: Settings) -> Catalog:
    """Raises InvalidConfig, with a line for each problem."""
    try:
        document = Document(file, text)
    except NoDocument as error:
        raise InvalidConfig(str(error.problem)) from None
    found = problems(document, settings)
    if found:
        raise InvalidConfig("\n".join(map(str, found)), param=found[0].key or None, hint=f"correct {file}")
    content = PresetsFile.model_validate(document.data)
    aliases = {alias.name: alias for alias in content.model_aliases}
    others = {model: _catalog(content, settings.of(model)) for model in settings.models}
    return replace(_catalog(content, settings), aliases=aliases, others=others)


def check_file(path: Path, settings: Settings) -> list[Problem]:
    """Everything that is wrong with a file, in the order of its lines."""
    try:
        return problems(Document(str(path), read_text(path, str(path), _MISSING)), settings)
    except NoDocument as error:
        return [error.problem]


_MISSING = "write it (config/presets.yaml is the one to begin with), or set presets: null"


def problems(document: Document, settings: Settings) -> list[Problem]:
    """In the order of the lines."""
    found = list(document.outline("see config/presets.yaml"))
    if isinstance(document.data, dict):
        found += problems_of(document, document.data, (), settings)
    return sorted(found, key=lambda problem: problem.line)


def problems_of(document: Document, data: object, at: Key, settings: Settings) -> list[Problem]:
    """Of presets that are in the document at `at`."""
    found = list(document.check(PresetsFile, data, at))
    if found:
        return found
    file = PresetsFile.model_validate(data)
    for model in settings.served:
        found += (problem for problem in _of_model(document, file, at, settings.of(model)) if problem not in found)
    return found + list(_of_aliases(document, file, at, settings))


def _of_model(document: Document, file: PresetsFile, at: Key, settings: Settings) -> Iterator[Problem]:
    names = _names(settings)
    for i, preset in enumerate(file.presets):
        if preset.serves(*names):
            yield from _of_preset(document, preset, (*at, "presets", i), settings)
    yield from _twice(document, file.presets, (*at, "presets"), names)
    yield from _twice(document, file.styles, (*at, "styles"), names)


def _names(settings: Settings) -> tuple[str, str]:
    return settings.model, settings.served_model_name


def warm_up_shapes(settings: Settings) -> tuple[tuple[int, int], ...]:
    """Width and height of every size that a preset of the served model has; nothing where the file is bad."""
    if settings.presets is None:
        return ()
    try:
        document = Document(settings.presets.name, read_text(settings.presets, settings.presets.name))
    except NoDocument as error:
        return _none(error.problem)
    if problem := next(document.check(PresetsFile, document.data), None):
        return _none(problem)
    file = PresetsFile.model_validate(document.data)
    if problem := next(_of_model(document, file, (), settings), None):
        return _none(problem)
    sizes = {preset.size for preset in _catalog(file, settings).presets.values() if preset.size}
    return tuple(sorted(parse_size(size, settings.cap_px) for size in sizes))


def _none(problem: Problem) -> tuple[tuple[int, int], ...]:
    log.warning("the sizes of presets are not warmed up", reason=str(problem))
    return ()


def _catalog(file: PresetsFile, settings: Settings) -> Catalog:
    """Of one model."""
    names = _names(settings)
    return Catalog(
        {preset.name: preset for preset in file.presets if preset.serves(*names)},
        {style.name: style for style in file.styles if style.serves(*names)},
    )


def _of_preset(document: Document, preset: Preset, at: Key, settings: Settings) -> Iterator[Problem]:
    limits, most_steps = preset.limits, settings.limits.max_steps
    if preset.size is not None:
        try:
            sides = parse_size(preset.size, settings.cap_px)
        except WrongSize as error:
            yield document.problem((*at, "size"), f"{preset.size!r}: {error.reason}")
        else:
            if limits.max_side_px is not None and max(sides) > limits.max_side_px:
                yield document.problem((*at, "size"), f"is over its own limits.max_side_px {limits.max_side_px}")
    for kind, wanted, served in (
        ("adapter", preset.adapter, tuple(settings.adapters)),
        ("controlnet", preset.controlnet, tuple(settings.controlnets)),
    ):
        if wanted is not None and wanted not in served:
            told = f"there is no {kind} {wanted!r}, but: {', '.join(served) or 'none'}"
            yield document.problem((*at, kind), told, suggestion(wanted, served))
    named: dict[Key, int] = {("num_inference_steps",): preset.num_inference_steps or 0}
    named |= {("quality", name): steps for name, steps in preset.quality.items()}
    for key, steps in named.items():
        if steps > most_steps:
            yield document.problem((*at, *key), f"is {steps}, the service's limits.max_steps is {most_steps}")
        elif limits.max_steps is not None and steps > limits.max_steps:
            yield document.problem((*at, *key), f"is {steps}, over its own limits.max_steps {limits.max_steps}")


def _twice(document: Document, entries: Sequence[S], at: Key, names: tuple[str, str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        if entry.serves(*names):
            if entry.name in seen:
                yield document.problem((*at, i, "name"), f"{entry.name!r} is taken for this model", "rename one")
            seen.add(entry.name)


def _of_aliases(document: Document, file: PresetsFile, at: Key, settings: Settings) -> Iterator[Problem]:
    seen = set(settings.served)
    for i, alias in enumerate(file.model_aliases):
        place = (*at, "model_aliases", i)
        if alias.name in seen:
            yield document.problem((*place, "name"), f"{alias.name!r} is taken", "rename it")
        seen.add(alias.name)
        if alias.model not in (None, *settings.served):
            hint = suggestion(str(alias.model), settings.served)
            there = ", ".join(settings.served)
            yield document.problem((*place, "model"), f"there is no model {alias.model!r}, but: {there}", hint)
            continue
        own = _names(settings.of(alias.model or settings.served_model_name))
        for key, name, entries in (
            ("preset", alias.preset, file.presets),
            ("style_preset", alias.style_preset, file.styles),
        ):
            names = tuple(entry.name for entry in entries if entry.serves(*own))
            if name is not None and name not in names:
                yield document.problem((*place, key), f"there is no {name!r} for this model", suggestion(name, names))
