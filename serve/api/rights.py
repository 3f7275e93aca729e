"""What each route asks of its caller. A route without an entry is for admins: forgetting one opens nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.types import Scope

from serve.access.roles import Right

RIGHTS: dict[str, Right] = {
    "GET /": Right.OPEN,
    "GET /ui/{name}": Right.OPEN,
    "GET /ui/{version}/{name}": Right.OPEN,
    "GET /healthz": Right.OPEN,
    "GET /readyz": Right.OPEN,
    "GET /metrics": Right.METRICS,
    "GET /docs": Right.READ,
    "GET /docs/files/{name}": Right.READ,
    "GET /openapi.json": Right.READ,
    "GET /auth/methods": Right.OPEN,
    "GET /auth/oidc/login": Right.OPEN,
    "GET /auth/oidc/callback": Right.OPEN,
    "GET /auth/oidc/logout": Right.OPEN,
    "GET /v1/me": Right.READ,
    "POST /v1/session": Right.READ,
    "DELETE /v1/session": Right.READ,
    "GET /v1/models": Right.READ,
    "GET /v1/models/{model}": Right.READ,
    "GET /v1/queue": Right.READ,
    "GET /v1/stats": Right.READ,
    "GET /v1/presets": Right.READ,
    "GET /v1/presets/{preset}/picture": Right.READ,
    "GET /v1/styles/{style}/picture": Right.READ,
    "GET /v1/jobs": Right.READ,
    "GET /v1/jobs/{job_id}": Right.READ,
    "GET /v1/jobs/{job_id}/events": Right.READ,
    "WS /v1/ws": Right.READ,
    "GET /v1/webhook-secret": Right.CHANGE,
    "GET /v1/assets": Right.READ,
    "DELETE /v1/assets": Right.CHANGE,
    "POST /v1/assets/delete": Right.CHANGE,
    "GET /v1/assets/{asset_id}": Right.LINK,
    "DELETE /v1/assets/{asset_id}": Right.CHANGE,
    "GET /v1/assets/{asset_id}/thumbnail": Right.LINK,
    "GET /v1/assets/{asset_id}/metadata": Right.READ,
    "POST /v1/images/generations": Right.DRAW,
    "POST /v1/images/edits": Right.DRAW,
    "GET /v1/inputs/{input_id}": Right.READ,
    "POST /v1/jobs": Right.DRAW,
    "POST /v1/jobs/{job_id}/rerun": Right.DRAW,
    "POST /v1/jobs/{job_id}/cancel": Right.CHANGE,
    "DELETE /v1/jobs/{job_id}": Right.CHANGE,
    "POST /hf/text-to-image": Right.DRAW,
    "POST /hf/models/{model}": Right.DRAW,
    "GET /v2/health/live": Right.OPEN,
    "GET /v2/health/ready": Right.OPEN,
    "GET /v2": Right.READ,
    "GET /v2/models/stats": Right.READ,
    "GET /v2/models/{model}/stats": Right.READ,
    "GET /v2/models/{model}/versions/{version}/stats": Right.READ,
    "GET /v2/": Right.READ,
    "GET /v2/models/{model}": Right.READ,
    "GET /v2/models/{model}/versions/{version}": Right.READ,
    "GET /v2/models/{model}/config": Right.READ,
    "GET /v2/models/{model}/versions/{version}/config": Right.READ,
    "GET /v2/models/{model}/ready": Right.READ,
    "GET /v2/models/{model}/versions/{version}/ready": Right.READ,
    "POST /v2/models/{model}/infer": Right.DRAW,
    "POST /v2/models/{model}/versions/{version}/infer": Right.DRAW,
    "POST /v2/models/{model}/generate": Right.DRAW,
    "POST /v2/models/{model}/versions/{version}/generate": Right.DRAW,
    "POST /v2/models/{model}/generate_stream": Right.DRAW,
    "POST /v2/models/{model}/versions/{version}/generate_stream": Right.DRAW,
    "POST /v2/repository/index": Right.READ,
    "POST /v2/repository/models/{model}/load": Right.READ,
    "POST /v2/repository/models/{model}/unload": Right.READ,
    "GET /v1/admin/config": Right.ADMIN,
    "POST /v1/admin/reload-config": Right.ADMIN,
    "GET /v1/admin/queue": Right.ADMIN,
    "POST /v1/admin/pause": Right.ADMIN,
    "POST /v1/admin/resume": Right.ADMIN,
    "GET /v1/admin/keys": Right.ADMIN,
    "POST /v1/admin/keys": Right.KEYS,
    "DELETE /v1/admin/keys/{key_id}": Right.KEYS,
}


def _matcher(template: str) -> Callable[[str], object]:
    parts = re.split(r"\{[a-z_]+\}", template)
    return re.compile("[^/]+".join(map(re.escape, parts))).fullmatch


_MATCHERS = [(route.partition(" ")[0], _matcher(route.partition(" ")[2]), right) for route, right in RIGHTS.items()]


def right_of(scope: Scope) -> Right | None:
    """None for what is not in the table. HEAD arrives here as the GET that answers it."""
    method = "WS" if scope["type"] == "websocket" else scope["method"]
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return next((right for known, fits, right in _MATCHERS if known == method and fits(path)), None)
