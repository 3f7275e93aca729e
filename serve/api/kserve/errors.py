"""Errors of everything under /v2, as KServe's clients read them: `{"error": "text"}`."""

from __future__ import annotations

from typing import Any

from serve.errors import ZImageError

_TRITONS_WORDS = {"queue_full": "Exceeds maximum queue size", "request_timeout": "Request timeout expired"}


def speaks_kserve(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def error_json(error: ZImageError, request_id: str) -> dict[str, Any]:
    """`error` is all that a client shows, so the hint is in it; clients look for some of Triton's words."""
    known = _TRITONS_WORDS.get(error.code)
    text = error.message if known is None else f"{known}: {error.message}"
    if error.hint:
        text = f"{text}; {error.hint}"
    return {"error": text, "code": error.code, "request_id": request_id}
