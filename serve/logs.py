"""How log lines look. Tracebacks are plain: with local variables in them, prompts would end up in logs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from serve.messages import Submission, Task
from serve.traceparent import trace_of


def configure(log_format: Literal["console", "json"], process: str | None = None) -> None:
    """Lines from INFO up; `process` names the one that says them in every line."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *([_Said(process)] if process else []),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
    ]
    if log_format == "json":
        as_json = structlog.processors.JSONRenderer(ensure_ascii=False)
        ends: list[Processor] = [structlog.processors.format_exc_info, as_json]
    else:
        ends = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure([*shared, *ends], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))


def origin(work: Task | Submission) -> Mapping[str, str]:
    """What every line about a job says, in whichever process: the job, its trace, and the request that made it."""
    said = {"job_id": work.job_id, "trace_id": trace_of(work.job_id, work.traceparent)}
    return said if work.request_id is None else said | {"request_id": work.request_id}


class _Said:
    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {"process": self._process, **event}
