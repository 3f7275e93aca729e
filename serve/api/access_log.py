"""One line for every answer: who asked for what, how it ended, and how long it took."""

from __future__ import annotations

import structlog
from starlette.types import Scope

from serve.pseudonym import Pseudonyms
from serve.traceparent import parent_of

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")  # asked every second or so, by machines

log = structlog.get_logger()


class AccessLog:
    """The path is that of the route, with parameters in braces: what a client puts into a URL stays out of logs.

    Probes have a line when they say something else than the time before; at first 200 is taken for granted.
    """

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._pseudonyms = pseudonyms
        self._probes = dict.fromkeys(PROBES, "200")

    def answered(self, scope: Scope, method: str, route: str, status: str, seconds: float, job_id: str | None) -> None:
        if route in self._probes:
            before, self._probes[route] = self._probes[route], status
            if status == before:
                return
        state = scope.get("state", {})
        caller, parent = state.get("caller"), parent_of(state.get("traceparent"))
        said = {
            "request_id": state.get("request_id"),
            "job_id": job_id or scope.get("path_params", {}).get("job_id"),
            "user": self._pseudonyms(caller.user) if caller and caller.user else None,
            "trace_id": parent.trace_id if parent else None,
        }
        known = {name: value for name, value in said.items() if value is not None}
        log.info("request", method=method, route=route, status=int(status), seconds=round(seconds, 4), **known)
