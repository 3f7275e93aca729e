"""The presets as a hot file."""

from __future__ import annotations

from serve.hot import Hot
from serve.presets.catalog import Catalog, parse
from serve.settings import Settings

NAME = "presets"  # in `user_config`, and in what the API tells


def hot_presets(settings: Settings) -> Hot[Catalog]:
    """Of the file that the settings name; `open` reads it."""
    return Hot(
        NAME,
        settings.presets,
        lambda file, text: parse(file, text, settings),
        Catalog(),
        settings.data / "hot" / "presets.yaml",
    )


def no_presets() -> Hot[Catalog]:
    return hot_presets(Settings(presets=None))
