"""Which pages may open a WebSocket here: browsers send cookies along, and ask nobody before they connect."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from serve.api.deps import Door

_DEFAULT_PORTS = (None, 80, 443)  # a proxy in front may have taken https off

Place = tuple[str, int | None]


def same_site(connection: HTTPConnection, door: Door) -> bool:
    """A page of the host that was asked, of `public_url`, or of `allowed_origins`. Only browsers name an Origin."""
    origin = connection.headers.get("origin")
    if origin is None:
        return True
    settings, place = door.settings, _place(origin)
    if place is None:
        return False  # "null": a sandboxed frame, a file
    named = [url for url in (settings.public_url, *settings.allowed_origins) if url is not None]
    if any(urlsplit(url).scheme == urlsplit(origin).scheme and _place(url) == place for url in named):
        return True
    return place == _place(f"//{connection.headers.get('host', '')}")


def _place(url: str) -> Place | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    return (parts.hostname, None if port in _DEFAULT_PORTS else port) if parts.hostname else None
