"""`Idempotency-Key`: the same key and body are one job, however often they are sent."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace

from starlette.datastructures import Headers

from serve.errors import InvalidRequest
from serve.messages import Submission

HEADER = "Idempotency-Key"

_KEY = re.compile("[!-~]{1,255}")


def keyed(submission: Submission, headers: Headers, seed: int | None) -> Submission:
    """With the request's key, if it has one. `seed` is the one asked for: a random one is not part of the body."""
    key = headers.get(HEADER)
    if key is None:
        return submission
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"{HEADER} has {len(key)} characters, the limit is 255 visible ASCII ones",
            param=HEADER,
            hint="send a new UUID for every picture you want",
        )
    return replace(submission, idempotency_key=key, body_sha256=_body_sha256(submission, seed))


def _body_sha256(submission: Submission, seed: int | None) -> str:
    """Of what the body asks for once defaults and aliases are resolved, not of how it was written."""
    asked = {
        "request": asdict(submission.request) | {"seed": seed},
        "priority": submission.priority,
        "deadline_ms": submission.deadline_ms,
        "previews": submission.previews,
        "parent_id": submission.parent_id,
    }
    if submission.webhook_url is not None:  # not among the others: keys from before there were webhooks stay good
        asked["webhook_url"] = submission.webhook_url
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
