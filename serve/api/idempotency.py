"""`Idempotency-Key`: the same key and body are one job, however often they are sent."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers

from serve.errors import InvalidRequest
from serve.messages import Submission

HEADER = "Idempotency-Key"

_KEY = re.compile("[!-~]{1,255}")
_PARTS = {  # of a request, by the fields that ask for them
    "size": ("width", "height"),
    "num_inference_steps": ("steps",),
    "guidance_scale": ("guidance",),
    "negative_prompt": ("negative_prompt",),
    "adapter": ("adapter",),
    "adapter_scale": ("adapter_scale",),
    "cfg_normalization": ("cfg_normalization",),
    "cfg_truncation": ("cfg_truncation",),
}


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


def _asked(submission: Submission) -> dict[str, Any]:
    """A preset by its name: what it resolves to may have changed before the same body is sent again."""
    request, use = submission.request.said(), submission.preset
    if use is None:
        return request
    filled_up = [part for field, parts in _PARTS.items() if field not in use.explicit for part in parts]
    if "quality" in use.explicit and "steps" in filled_up:
        filled_up.remove("steps")
    own = {"prompt": use.prompt, "preset": use.preset, "style_preset": use.style_preset}
    return {name: value for name, value in request.items() if name not in filled_up} | own


def _body_sha256(submission: Submission, seed: int | None) -> str:
    """Of what the body asks for once defaults and aliases are resolved, not of how it was written."""
    asked = {
        "request": _asked(submission) | {"seed": seed},
        "priority": submission.priority,
        "deadline_ms": submission.deadline_ms,
        "previews": submission.previews,
        "parent_id": submission.parent_id,
    }
    if submission.webhook_url is not None:  # not among the others: keys from before there were webhooks stay good
        asked["webhook_url"] = submission.webhook_url
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
