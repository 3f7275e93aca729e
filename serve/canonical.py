"""A request as its keys are made of it: what it asks for, and nothing that it would not have said before."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from serve.messages import ImageRequest

FIRST_FIELDS = {"model", "prompt", "negative_prompt", "width", "height", "steps", "guidance", "seed", "n"}
FIRST_FIELDS |= {"output_format", "output_compression", "deterministic"}


def canonical(request: ImageRequest) -> dict[str, Any]:
    """Fields that came later count only where they are not at their defaults: keys from before stay what they were."""
    later = {field.name: field.default for field in fields(request) if field.name not in FIRST_FIELDS}
    return {name: value for name, value in asdict(request).items() if name not in later or value != later[name]}
