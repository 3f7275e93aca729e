from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from serve import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail(prompt: str) -> None:
    try:
        raise ValueError("the model failed")
    except ValueError:
        structlog.get_logger().exception("a task failed", job_id="j1")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_where_and_never_what_was_asked(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(log_format)  # type: ignore[arg-type]
    fail("a secret wish")
    printed = capsys.readouterr().out
    assert "ValueError" in printed
    assert "j1" in printed
    assert "secret" not in printed


def test_json_is_one_object_a_line_with_the_request_that_it_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("replica ready", role="denoiser")
    line = json.loads(capsys.readouterr().out)
    assert {"event": "replica ready", "role": "denoiser", "request_id": "r1", "level": "info"}.items() <= line.items()
