"""Docs that say what is there: every setting has its row, every command in a code block exists."""

import json
import re
from pathlib import Path

import pytest
import typer.main
from pydantic import BaseModel

from serve.cli import app
from serve.settings import Settings

DOCS = [path for path in (Path("README.md"), *sorted(Path("docs").glob("*.md"))) if path.is_file()]
CONFIGURATION = Path("docs/configuration.md").read_text()


def settings(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, str]:
    """Every setting by its path, with its default as the docs write it."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            found |= settings(type(field.default), f"{prefix}{name}.")
        else:
            default = json.dumps(field.default, default=str)
            found[prefix + name] = "none" if field.default is None else f"`{default}`"
    return found


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "default"), settings().items())
def test_setting_has_a_row_with_its_default(name: str, default: str):
    assert f"| `{name}` | {default} | " in CONFIGURATION


def test_every_row_is_a_setting():
    section = CONFIGURATION.split("\n## Settings\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z0-9_.]+)` \|", section, re.MULTILINE)) == set(settings())


@pytest.mark.parametrize("path", DOCS, ids=str)
def test_commands_in_code_blocks_exist(path: Path):
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE))
    commands = set(typer.main.get_command(app).commands)
    for block in code_blocks(path):
        assert set(re.findall(r"^ *make ([a-z-]+)", block, re.MULTILINE)) <= targets
        assert set(re.findall(r"\bzimage ([a-z][a-z-]*)", block)) <= commands
        for config in re.findall(r"config/[a-z.]+\.yaml", block):
            assert Path(config).is_file()
