"""`zimage keys`, as an operator types it."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.run import _check_way_in
from serve.access.keys import KeyRing, pepper_of
from serve.cli import app
from serve.errors import ConfigError
from serve.jobs.way_in import opened_keys
from serve.settings import Settings


@pytest.fixture
def zimage(tmp_path: Path):
    def run(*words: str):
        return CliRunner().invoke(app, ["keys", *words, "--data", str(tmp_path)])

    return run


def test_made_listed_and_revoked_before_the_first_start(zimage, tmp_path):
    made = zimage("create", "ci", "--role", "viewer", "--user", "bob", "--days", "3")
    text = made.stdout.strip()
    assert made.exit_code == 0
    assert text.startswith("zk_")
    (key,) = json.loads(zimage("list", "--json").stdout)
    assert (key["name"], key["role"], key["user"], key["last_four"]) == ("ci", "viewer", "bob", text[-4:])
    assert text not in zimage("list").stdout
    assert "works until" in zimage("list").stdout
    assert zimage("revoke", key["id"]).exit_code == 0
    assert "revoked" in zimage("list").stdout


def test_what_it_makes_the_service_knows(zimage, tmp_path):
    text = zimage("create", "ci").stdout.strip()
    settings = Settings(data=tmp_path)

    async def found():
        async with opened_keys(settings) as keys:
            return await KeyRing(keys.all, pepper_of(settings)).find(text)

    assert asyncio.run(found()).user == "ci"


@pytest.mark.parametrize("words", [("create", "x", "--role", "king"), ("revoke", "x"), ("create", "")])
def test_mistakes_are_said(zimage, words):
    result = zimage(*words)
    assert result.exit_code == 1
    assert result.exception.message


def test_an_unreadable_config_is_said(zimage, tmp_path):
    (tmp_path / "bad.yaml").write_text("applications: [{args: {modle: x}}]")
    for name in ("none.yaml", "bad.yaml"):
        result = zimage("create", "x", "--config", str(tmp_path / name))
        assert isinstance(result.exception, ConfigError)


def test_a_start_that_others_could_reach_is_refused_until_there_is_a_key(zimage, tmp_path):
    settings = Settings(data=tmp_path)
    with pytest.raises(ConfigError, match=r"host is 0\.0\.0\.0"):
        asyncio.run(_check_way_in(settings, "0.0.0.0"))
    asyncio.run(_check_way_in(Settings(data=tmp_path, access="open"), "0.0.0.0"))
    zimage("create", "first", "--role", "admin")
    asyncio.run(_check_way_in(settings, "0.0.0.0"))
