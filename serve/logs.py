"""How log lines look. Tracebacks are plain: with local variables in them, prompts would end up in logs."""

from __future__ import annotations

from typing import Literal

import structlog
from structlog.typing import Processor


def configure(log_format: Literal["console", "json"]) -> None:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    if log_format == "json":
        as_json = structlog.processors.JSONRenderer(ensure_ascii=False)
        ends: list[Processor] = [structlog.processors.format_exc_info, as_json]
    else:
        ends = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure([*shared, *ends])
