"""`zimage keys`: API keys of a service, whether it runs or not. It sees changes within two seconds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from serve.errors import ConfigError

if TYPE_CHECKING:
    from serve.access.keys import ApiKey
    from serve.jobs.keys import SqlKeys
    from serve.settings import Settings

T = TypeVar("T")

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

Config = Annotated[Path, typer.Option(help="The file that the service starts with.")]
Data = Annotated[Path | None, typer.Option(help="The data folder that it starts with, where it was started with one.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
CONFIG = Path("config/serve.yaml")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[str, typer.Option(help="admin, user, preset_only or viewer.")] = "user",
    user: Annotated[str | None, typer.Option(help="Whose jobs it makes and sees; default: NAME.")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="How long it works; default: for ever.")] = None,
    config: Config = CONFIG,
    data: Data = None,
) -> None:
    """Make a key and print it: nobody can see it again."""
    from serve.access.keys import create as make  # noqa: PLC0415
    from serve.access.keys import pepper_of  # noqa: PLC0415

    settings = _settings(config, data)
    ttl_s = None if days is None else days * 86400
    text, key = make(pepper_of(settings), name=name, role=role, user=user, ttl_s=ttl_s)
    _run(settings, lambda stored: stored.add(key))
    typer.echo(text)
    typer.echo(f"key {key.id} of {key.user}, role {key.role}: keep it, it is not shown again", err=True)


@keys.command("list")
def list_(config: Config = CONFIG, data: Data = None, as_json: AsJson = False) -> None:
    """All keys that were ever made, without the keys themselves."""
    found = _run(_settings(config, data), lambda stored: stored.all())
    if as_json:
        typer.echo(json.dumps([_without_digest(key) for key in found]))
        return
    row = "{:<26}  {:<20}  {:<11}  {:<20}  {:<5}  {}".format
    typer.echo(row("id", "name", "role", "user", "ends", "state"))
    for key in found:
        typer.echo(row(key.id, key.name, key.role, key.user, key.last_four, _state(key)))


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id, as `zimage keys list` tells it.")],
    config: Config = CONFIG,
    data: Data = None,
) -> None:
    """End a key, and all sessions that were opened with it, within two seconds."""
    key = _run(_settings(config, data), lambda stored: stored.revoke(key_id, time.time()))
    typer.echo(f"revoked: {key.name}, …{key.last_four}")


def _settings(config: Path, data: Path | None) -> Settings:
    """As the service has them. Raises ConfigError."""
    import yaml  # noqa: PLC0415
    from pydantic import ValidationError  # noqa: PLC0415

    from serve.settings import Settings  # noqa: PLC0415

    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings = Settings.model_validate(document["applications"][0].get("args") or {})
    except OSError as error:
        raise ConfigError(f"{config} cannot be read: {error.strerror}", hint="name it with --config") from error
    except (yaml.YAMLError, ValidationError, LookupError, TypeError, AttributeError) as error:
        hint = f"python -m deployments.config check {config}"
        raise ConfigError(f"{config} is not a config of this service", hint=hint) from error
    return settings if data is None else settings.model_copy(update={"data": data})


def _run(settings: Settings, work: Callable[[SqlKeys], Awaitable[T]]) -> T:
    from serve.jobs.way_in import opened_keys  # noqa: PLC0415

    async def run() -> T:
        async with opened_keys(settings) as stored:
            return await work(stored)

    return asyncio.run(run())


def _without_digest(key: ApiKey) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "digest"}


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "works"
    return f"{'works until' if key.valid(time.time()) else 'expired'} {_day(key.expires_at)}"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
