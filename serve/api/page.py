"""The page at `/`: files of this package that work offline, and drive nothing but the public API."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.accept import prefers_json
from serve.errors import NotFound

FOLDER = Path(__file__).parent / "ui"
INDEX = "index.html"
STYLE = b'<link rel="stylesheet" href="./ui/style.css">'
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{}; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NO_CACHE = "no-cache"  # asked for each time, answered 304: an upgrade is seen at once
FOR_EVER = "public, max-age=31536000, immutable"
NEVER = "no-store"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class File:
    """`packed` is `content` as gzip makes it, `policy` its Content-Security-Policy."""

    content: bytes
    packed: bytes
    media_type: str
    tag: str
    policy: str


@cache
def files() -> dict[str, File]:
    """By name; read once, as they change with the installation only. The page names the others with their version."""
    found = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
    style = found["style.css"].replace(b"url(", b"url(./ui/")
    page = found[INDEX].replace(STYLE, b"<style>" + style + b"</style>")  # so that the first paint waits for nothing
    found[INDEX] = page.replace(b"./ui/", f"./ui/{current()}/".encode())
    return {name: _file(name, content) for name, content in found.items()}


@cache
def current() -> str:
    """Of all files together: modules of one version load no others."""
    whole = hashlib.sha256()
    for path in sorted(FOLDER.iterdir()):
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:16]


def _file(name: str, content: bytes) -> File:
    packed = gzip.compress(content, mtime=0)
    tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    return File(content, packed, _TYPES[Path(name).suffix], tag, POLICY.format(_allowed(content)))


def _allowed(content: bytes) -> str:
    """The page's own style, by its hash: nothing else that stands in a page is let in."""
    styles = re.findall(rb"<style>(.*?)</style>", content, re.DOTALL)
    return "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(style).digest()).decode()}'" for style in styles)


@router.get("/")
async def page(request: Request) -> Response:
    """For browsers. A client that prefers JSON is told, as ever, that there is no such route."""
    if prefers_json(request.headers.get("accept", "")):
        raise NotFound("no route GET / for JSON", hint="see /docs for the routes there are")
    return _answer(request, INDEX, NO_CACHE)


@router.get("/ui/{name}")
async def file(name: str, request: Request) -> Response:
    return _answer(request, name, NO_CACHE)


@router.get("/ui/{version}/{name}")
async def versioned(version: str, name: str, request: Request) -> Response:
    """While Gateways are replaced one may be asked for another's version: it gives its own, and nobody keeps that."""
    return _answer(request, name, FOR_EVER if version == current() else NEVER)


def _answer(request: Request, name: str, caching: str) -> Response:
    """The tag is weak: it names the content, packed or not."""
    file = files().get(name)
    if file is None:
        raise NotFound(f"no route GET {request.url.path[:128]}", hint="see /docs for the routes there are")
    headers = _HEADERS | {
        "Content-Security-Policy": file.policy,
        "ETag": file.tag,
        "Vary": "Accept, Accept-Encoding",
        "Cache-Control": caching,
    }
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers=headers | {"Content-Encoding": "gzip"}, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)
