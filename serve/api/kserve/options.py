"""A request's `parameters`: how it is served, beside what is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.api.control import FIELDS as CONTROL
from serve.api.how import FIELDS
from serve.errors import InvalidRequest
from serve.messages import PRIORITIES, Priority

_MAX_UINT64 = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`timeout_s` is how long every row may wait until its first step; `how` are fields of the other doors' bodies."""

    priority: Priority | None = None
    timeout_s: float | None = None
    preset: str | None = None
    style_preset: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    mask: str | None = None
    control_image: str | None = None


def read_options(parameters: Any) -> Options:
    """Names that mean nothing here are ignored. Raises InvalidRequest."""
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters is not an object", param="parameters")
    check_names(parameters)
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise InvalidRequest(f"the parameter {name[:64]!r} is not a string, number or boolean", param=name[:64])
    level = _whole(parameters, "priority", len(PRIORITIES))
    timeout_us = _whole(parameters, "timeout", _MAX_UINT64)
    return Options(
        priority=PRIORITIES[level - 1] if level else None,
        timeout_s=timeout_us / 1e6 if timeout_us else None,
        preset=_text(parameters, "preset"),
        style_preset=_text(parameters, "style_preset"),
        how={name: parameters[name] for name in (*FIELDS, *CONTROL, "strength") if name in parameters},
        image=_text(parameters, "image"),
        mask=_text(parameters, "mask"),
        control_image=_text(parameters, "control_image"),
    )


def check_names(content: Mapping[str, Any]) -> None:
    """Triton keeps some names for itself, and refuses them."""
    for name in content:
        if name.startswith("triton_"):
            raise InvalidRequest(f"{name[:64]!r}: names that begin with triton_ are reserved", param=name[:64])


def _whole(parameters: Mapping[str, Any], name: str, most: int) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidRequest(f"the parameter {name} is {value!r:.40}, not an integer from 0 to {most}", param=name)
    return value


def _text(parameters: Mapping[str, Any], name: str) -> str | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"the parameter {name} is not a string", param=name)
    return value
