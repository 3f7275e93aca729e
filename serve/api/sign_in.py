"""How one comes in with a browser, and the two ends of signing in at an OpenID provider."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from serve.access.oidc_sign_in import COOKIE, TTL_S, OpenIdSignIn
from serve.api.accept import prefers_json
from serve.api.deps import Door, TheDoor
from serve.api.docs import SIGN_IN_BACK, SIGN_IN_METHODS, SIGN_IN_THERE, SIGN_OUT_THERE
from serve.api.me import keep_session
from serve.errors import NotFound, ZImageError

router = APIRouter(prefix="/auth", tags=["access"])

CALLBACK = "/auth/oidc/callback"

_log = structlog.get_logger(__name__)


@router.get("/methods", **SIGN_IN_METHODS)
async def methods(door: TheDoor) -> Response:
    """For whoever is not known yet."""
    access = door.access
    closed = await access.closed()
    found: list[dict[str, Any]] = [{"type": "key"}] if closed else []
    if closed and access.passwords:
        found.append({"type": "password"})
    if closed and access.oidc_sign_in is not None:
        found.append({"type": "oidc", "label": access.oidc_sign_in.label, "path": "/auth/oidc/login"})
    return JSONResponse({"object": "list", "data": found}, headers={"Cache-Control": "no-store"})


@router.get("/oidc/login", **SIGN_IN_THERE)
async def login(request: Request, door: TheDoor) -> Response:
    provider = _provider(door)
    try:
        url, cookie = await provider.begin(door.base_url(request) + CALLBACK)
    except ZImageError as error:
        return _told(request, door, error)
    response = _to(url)
    response.set_cookie(COOKIE, cookie, max_age=TTL_S, **_kept(request, door))
    return response


@router.get("/oidc/callback", **SIGN_IN_BACK)
async def callback(request: Request, door: TheDoor) -> Response:
    """Whatever comes of it, the same answer of the provider is not taken twice."""
    provider, base = _provider(door), door.base_url(request)
    kept, answer = request.cookies.get(COOKIE, ""), dict(request.query_params)
    try:
        identity = await provider.finish(kept, answer, base + CALLBACK)
    except ZImageError as error:
        response = _told(request, door, error)
    else:
        response = _to(f"{base}/")
        keep_session(request, response, door, door.access.vouched(identity))
        _log.info("signed in", via="oidc")
    response.delete_cookie(COOKIE, **_kept(request, door))
    return response


@router.get("/oidc/logout", **SIGN_OUT_THERE)
async def logout(request: Request, door: TheDoor) -> Response:
    """The session here is ended by `DELETE /v1/session`, which no link of another site can."""
    provider = _provider(door)
    try:
        return _to(await provider.leave(f"{door.base_url(request)}/"))
    except ZImageError as error:
        return _told(request, door, error)


def _provider(door: Door) -> OpenIdSignIn:
    found = door.access.oidc_sign_in
    if found is None:
        raise NotFound("there is no OpenID sign-in here", hint="it takes access.oidc.client_id; a key always works")
    return found


def _to(url: str) -> RedirectResponse:
    return RedirectResponse(url, 302, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def _told(request: Request, door: Door, error: ZImageError) -> Response:
    """The page says it in the reader's language; a program is told as everywhere. Raises the error then."""
    if prefers_json(request.headers.get("accept", "")):
        raise error
    _log.warning("a sign-in came to nothing", code=error.code, reason=error.message)
    said = urlencode({"sign-in": error.code, "request": request.state.request_id})
    return _to(f"{door.base_url(request)}/#{said}")


def _kept(request: Request, door: Door) -> dict[str, Any]:
    """Lax: the browser comes back from another site."""
    secure = door.base_url(request).startswith("https://")
    return {"path": "/", "httponly": True, "samesite": "lax", "secure": secure}
