"""A request's body as it was before its Content-Encoding: no larger than the limit at any moment."""

from __future__ import annotations

import zlib

from fastapi import Request

from serve.errors import BodyTooLarge, InvalidRequest
from serve.settings import LimitSettings

_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_WINDOWS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


async def read_body(request: Request, limits: LimitSettings) -> bytes:
    """Raises BodyTooLarge or InvalidRequest."""
    limit = limits.body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    inflating = None if encoding in ("identity", "") else _Inflating(encoding, limit)
    data = bytearray()
    async for chunk in request.stream():
        data += inflating.add(chunk, len(data)) if inflating else chunk
        if len(data) > limit:
            raise _too_large(limit)
    if inflating:
        inflating.check_complete()
    return bytes(data)


class _Inflating:
    def __init__(self, encoding: str, limit: int) -> None:
        if encoding not in _WINDOWS:
            hint = "send gzip, deflate, or the body as it is"
            raise InvalidRequest(f"Content-Encoding {encoding[:32]!r} is not known", hint=hint)
        self._encoding = encoding
        self._limit = limit
        self._inflate = zlib.decompressobj(_WINDOWS[encoding])

    def add(self, chunk: bytes, so_far: int) -> bytes:
        """At most one byte over the limit, whatever the chunk holds."""
        try:
            data = self._inflate.decompress(chunk, self._limit - so_far + 1)
        except zlib.error as error:
            raise self._broken("cannot be inflated") from error
        if self._inflate.unused_data:
            raise self._broken("goes on after its end")
        return data

    def check_complete(self) -> None:
        if not self._inflate.eof:
            raise self._broken("ends too early")

    def _broken(self, how: str) -> InvalidRequest:
        return InvalidRequest(f"the {self._encoding} body {how}", hint="deflate is zlib's format (RFC 9110)")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {limit} bytes", hint="prompts and a few numbers need far less")
