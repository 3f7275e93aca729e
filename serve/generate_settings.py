"""The settings of `zimage generate`: those of a config file or none, with the one adapter that is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from serve.doctor import settings_of
from serve.errors import ConfigError
from serve.settings import EMBEDDED_FOLDER, Settings

ADAPTERS = EMBEDDED_FOLDER / "adapters"  # of the embedded model


def settings_for(config: Path | None, adapter: str | None, said: Mapping[str, object]) -> tuple[Settings, str | None]:
    """And the adapter's name in them. A file, a folder or a hub id becomes one of its own name.

    `said` are settings that were said on the command line; `model` may also be the name of one that the file serves.
    Raises ConfigError.
    """
    known, changes = Settings() if config is None else settings_of(config), dict(said)
    named = config is not None and changes.get("model") in known.served
    served = str(changes.pop("model")) if named else known.served_model_name
    changed = known.of(served).model_dump() | changes
    if config is None and changed["model"] == "embedded":
        changed["adapters"] = {path.stem: str(path) for path in sorted(ADAPTERS.glob("*.safetensors"))}
    name = adapter
    if adapter is not None and adapter not in changed["adapters"] and ("/" in adapter or Path(adapter).exists()):
        name = re.sub(r"[^a-z0-9._-]+", "-", Path(adapter).stem.lower()).lstrip("._-")[:64] or "adapter"
        changed["adapters"] = {name: adapter}
    try:
        return Settings.model_validate(changed), name
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {first['msg']}", param=where, hint="see docs/configuration.md") from error
