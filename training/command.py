"""The command line of what teaches the embedded model something small: an adapter, a ControlNet."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

EMBEDDED = Path(__file__).parents[1] / "serve" / "engine" / "tiny"

Recipe = TypeVar("Recipe")


def run(
    train: Callable[[Recipe, Path, Path], object],
    recipe: Recipe,
    smoke: Recipe,
    *,
    about: str | None,
    what: str,
    arguments: Sequence[str] | None,
) -> None:
    """Calls `train(recipe, model, out)` as `arguments` say; `what` is made, a file or a folder."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, help=f"the {what}; its .log is written beside it")
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    train(smoke if options.smoke else recipe, options.model, options.out)
