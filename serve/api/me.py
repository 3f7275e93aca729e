"""Who one is here, and the page's session."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.access import quotas
from serve.access.caller import Caller
from serve.access.roles import GRANTS
from serve.access.sessions import COOKIE
from serve.api.deps import Door, TheDoor
from serve.api.docs import CREATE_SESSION, DELETE_SESSION, ME
from serve.api.job_json import rfc3339
from serve.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["access"])


@router.get("/me", **ME)
async def get_me(door: TheDoor) -> dict[str, Any]:
    return await _me(door, door.caller)


@router.post("/session", **CREATE_SESSION)
async def create_session(request: Request, door: TheDoor) -> Response:
    """By the credentials of this one request, which the page can then forget."""
    if door.caller.via == "open":
        raise InvalidRequest("access is open: there is nobody to have a session", hint="go on without one")
    cookie, expires = door.access.sessions.issue(door.caller)
    me = await _me(door, door.caller) | {
        "csrf_token": door.access.sessions.csrf_token(cookie),
        "expires_at": rfc3339(expires),
    }
    response = JSONResponse(me, 201)
    _set(request, response, door, cookie, expires)
    return response


def keep_session(request: Request, response: Response, door: Door, caller: Caller) -> None:
    """The cookie of a caller who has just come in."""
    _set(request, response, door, *door.access.sessions.issue(caller))


def _set(request: Request, response: Response, door: Door, cookie: str, expires: float) -> None:
    response.set_cookie(COOKIE, cookie, max_age=int(expires - time.time()), **_kept(request, door))


@router.delete("/session", **DELETE_SESSION)
async def delete_session(request: Request, door: TheDoor) -> Response:
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, **_kept(request, door))
    return response


def _kept(request: Request, door: Door) -> dict[str, Any]:
    secure = door.base_url(request).startswith("https://")
    return {"path": "/", "httponly": True, "samesite": "strict", "secure": secure}


async def _me(door: Door, caller: Caller) -> dict[str, Any]:
    limited = caller.quota is not None and caller.quota.limited
    windows = (await door.service.usage(caller.user)).windows(caller.quota) if caller.quota and limited else []
    return {
        "object": "me",
        "user": caller.user,
        "role": caller.role,
        "via": caller.via,
        "rights": sorted(right.value for right in GRANTS[caller.role]),
        "interactive": caller.interactive,
        "quota": quotas.shown(windows),
        "csrf_token": door.access.sessions.csrf_token(caller.session) if caller.session else None,
    }
