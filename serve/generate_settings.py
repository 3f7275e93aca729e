"""The settings of `zimage generate`: those of a config file or none, with the parts that are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from serve.doctor import settings_of
from serve.errors import ConfigError
from serve.settings import EMBEDDED_FOLDER, Settings

ADAPTERS = EMBEDDED_FOLDER / "adapters"  # of the embedded model
CONTROLNETS = EMBEDDED_FOLDER / "controlnets"


class Chosen(NamedTuple):
    """With the names that the adapter and the ControlNet have in them."""

    settings: Settings
    adapter: str | None
    controlnet: str | None


def settings_for(
    config: Path | None, said: Mapping[str, object], adapter: str | None = None, controlnet: str | None = None
) -> Chosen:
    """A file, a folder or a hub id becomes an adapter or a ControlNet of its own name.

    `said` are settings that were said on the command line; `model` may also be the name of one that the file serves.
    Raises ConfigError.
    """
    known, changes = Settings() if config is None else settings_of(config), dict(said)
    named = config is not None and changes.get("model") in known.served
    served = str(changes.pop("model")) if named else known.served_model_name
    changed = known.of(served).model_dump() | changes
    if config is None and changed["model"] == "embedded":
        changed["adapters"] = {path.stem: str(path) for path in sorted(ADAPTERS.glob("*.safetensors"))}
        folders = sorted(path.parent for path in CONTROLNETS.glob("*/config.json"))
        changed["controlnets"] = {path.name: {"weights": str(path), "scale": 1} for path in folders}
    adapter, changed["adapters"] = _found("adapter", adapter, changed["adapters"])
    controlnet, changed["controlnets"] = _found("controlnet", controlnet, changed["controlnets"])
    try:
        return Chosen(Settings.model_validate(changed), adapter, controlnet)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {first['msg']}", param=where, hint="see docs/configuration.md") from error


def _found(kind: str, asked: str | None, known: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Its name, and those that there are: one that lies elsewhere is the only one."""
    if asked is None or asked in known or not ("/" in asked or Path(asked).exists()):
        return asked, known
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(asked).stem.lower()).lstrip("._-")[:64] or kind
    return name, {name: asked}
