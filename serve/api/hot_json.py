"""A hot file's version as people and programs read it."""

from __future__ import annotations

from typing import Any

from serve.api.job_json import rfc3339
from serve.hot import HotStatus


def hot_json(status: HotStatus) -> dict[str, Any]:
    refused = None if status.error is None else {"message": status.error, "at": rfc3339(status.error_at)}
    return {
        "source": status.source,
        "hash": status.hash,
        "loaded_at": rfc3339(status.loaded_at),
        "refused": refused,
    }
