"""Every error of every route becomes an answer here, in OpenAI's shape or RFC 9457's."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Match

from serve.api.accept import PROBLEM, wants_problem
from serve.api.kserve.errors import error_json as kserve_json
from serve.api.kserve.errors import speaks_kserve
from serve.errors import (
    AssetCorrupted,
    BodyTooSlow,
    InvalidRequest,
    JobCanceled,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
    ZImageError,
)
from serve.messages import ErrorInfo

RETRY_AFTER_S = 1

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

_log = structlog.get_logger(__name__)


def install(app: FastAPI) -> None:
    app.add_exception_handler(ZImageError, _answer)
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(RequestValidationError, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    return error_response(request, error)


def error_response(request: Request, error: Exception) -> Response:
    shown = shown_error(request, error)
    headers = _headers(shown)
    if isinstance(error, HTTPException):
        headers |= _allowed(request, error)
    if speaks_kserve(request.url.path):
        return JSONResponse(kserve_json(shown, request.state.request_id), shown.status, headers)
    if not wants_problem(request.headers.get("accept", "")):
        return JSONResponse({"error": error_body(request, shown)}, shown.status, headers)
    return JSONResponse(_problem(request, shown), shown.status, headers, media_type=PROBLEM)


def error_body(request: HTTPConnection, error: Exception) -> dict[str, Any]:
    """OpenAI's four keys, always, and ours; `fragment` only where a part of a prompt is at fault."""
    error = shown_error(request, error)
    body = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "hint": error.hint,
        "request_id": request.state.request_id,
    }
    return body if error.fragment is None else body | {"fragment": asdict(error.fragment)}


def from_info(info: ErrorInfo) -> ZImageError:
    """A stored job's error as one that can be raised."""
    error = ZImageError(info.message, param=info.param, hint=info.hint, retry_after=info.retry_after)
    error.status, error.code, error.type = info.status, info.code, info.type
    return error


def shown_error(request: HTTPConnection, error: Exception) -> ZImageError:
    if isinstance(error, ZImageError):
        return error
    if isinstance(error, RequestValidationError):
        return _from_validation(error)
    if isinstance(error, HTTPException):
        return _from_http(request, error)
    _log.error("unexpected error", exc_info=error)
    return ZImageError("internal error", hint="try again; if it stays, give the operator the request_id")


def _from_validation(error: RequestValidationError) -> InvalidRequest:
    """A parameter of the path or the query; bodies are read by hand."""
    first = error.errors()[0]
    param = str(first["loc"][1])
    wrong = str(first["msg"]).removeprefix("Input ")
    return InvalidRequest(f"{param} {wrong}, got {str(first['input'])[:64]!r}", param=param, hint="see /docs")


def _from_http(request: HTTPConnection, error: HTTPException) -> ZImageError:
    route = "{method} {path:.200}".format_map(request.scope)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"no route {route}", hint="see /docs for the routes there are")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{route}: method not allowed", hint="use a method of the Allow header, see /docs")
    shown = InvalidRequest(str(error.detail))
    shown.status = error.status_code
    return shown


def _headers(error: ZImageError) -> dict[str, str]:
    headers = {}
    if error.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) or error.retry_after:
        headers["Retry-After"] = str(error.retry_after or RETRY_AFTER_S)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, BodyTooSlow):
        headers["Connection"] = "close"  # the rest of the body may still come
    if isinstance(error, JobCanceled | AssetCorrupted):
        headers["x-should-retry"] = "false"
    return headers


def _allowed(request: Request, error: HTTPException) -> dict[str, str]:
    """The methods of all routes of the path: the error itself names those of one. What answers GET answers HEAD.

    A path that is documented as it stands, `/v1/assets/delete`, is not one of `/v1/assets/{asset_id}` too.
    """
    if "Allow" not in (error.headers or {}):
        return {}
    documented = request.app.openapi()["paths"].get(request.url.path)
    known = None if documented is None else {method.upper() for method in documented}
    return {"Allow": ", ".join(method for method in _METHODS if _answers(request, method, known))}


def _answers(request: Request, method: str, known: set[str] | None) -> bool:
    method = "GET" if method == "HEAD" else method
    if known is not None:
        return method in known
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


def _problem(request: Request, error: ZImageError) -> dict[str, Any]:
    body = error_body(request, error)
    detail = body.pop("message")
    body["error_type"] = body.pop("type")
    return {"type": "about:blank", "title": HTTPStatus(error.status).phrase, "status": error.status} | {
        "detail": detail,
        **body,
    }
