"""A JSON object out of a request body, within limits that are checked while it arrives."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Collection
from typing import Any, NoReturn

from fastapi import Request

from serve.errors import BodyTooLarge, InvalidRequest
from serve.settings import LimitSettings

FILES = 3  # a picture, its mask, and what a ControlNet follows

_HINT = "send one JSON object, encoded in UTF-8"
_PICTURE_HINT = "this is a picture alone: send JSON that holds it in base64, beside a prompt"
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")


async def read_object(request: Request, limits: LimitSettings, pictures: Collection[str] = ()) -> dict[str, Any]:
    """Whatever its Content-Type says. `pictures` are fields that may hold files, which count for themselves.

    Raises BodyTooLarge or InvalidRequest.
    """
    return await _object(await _read(request, limits, pictures), limits, pictures)


async def read_object_if_any(request: Request, limits: LimitSettings, pictures: Collection[str] = ()) -> dict[str, Any]:
    """No body at all is an empty object."""
    data = await _read(request, limits, pictures)
    return await _object(data, limits, pictures) if data else {}


def _most(limits: LimitSettings, pictures: Collection[str]) -> int:
    """Base64 takes four bytes for three."""
    return limits.body_bytes + (FILES * (limits.image_bytes + 2) * 4 // 3 if pictures else 0)


async def _object(data: bytes, limits: LimitSettings, pictures: Collection[str]) -> dict[str, Any]:
    if len(data) <= limits.body_bytes:
        return parse_object(data, limits)
    value = await asyncio.to_thread(_checked, data, limits)
    if len(data) - sum(_held(value.get(name)) for name in pictures) > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    return value


def _held(value: Any) -> int:
    """Characters of a picture, or of the one that is in OpenAI's list or object."""
    if isinstance(value, list):
        return sum(map(_held, value))
    if isinstance(value, dict):
        return _held(value.get("image_url"))
    return len(value) if isinstance(value, str) else 0


def parse_object(data: bytes, limits: LimitSettings) -> dict[str, Any]:
    """Raises BodyTooLarge or InvalidRequest."""
    if len(data) > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    return _checked(data, limits)


def _checked(data: bytes, limits: LimitSettings) -> dict[str, Any]:
    value = _parse(data, limits.json_depth)
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is a JSON {_kind(value)}, not an object", hint=_HINT)
    _check_depth(value, limits.json_depth)
    return value


async def _read(request: Request, limits: LimitSettings, pictures: Collection[str]) -> bytes:
    """What is over the limit without the name of a picture is too large whatever follows, and is not waited for."""
    data = bytearray()
    small = True
    async for chunk in within(request, _most(limits, pictures)):
        data += chunk
        if small and len(data) > limits.body_bytes:
            small = False
            if not any(f'"{name}"'.encode() in data for name in pictures):
                raise _too_large(limits.body_bytes)
    return bytes(data)


async def within(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises BodyTooLarge."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> BodyTooLarge:
    hint = "a prompt and a few numbers need far less; pictures are counted apart where they are taken"
    return BodyTooLarge(f"the body is over {limit} bytes", hint=hint)


def _parse(data: bytes, max_depth: int) -> Any:
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
        if "\\ud" in text.lower():  # an escaped half of a surrogate pair is JSON, but not text
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        hint = _PICTURE_HINT if data.startswith(_PICTURES) else _HINT
        raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}", hint=hint) from error
    except UnicodeEncodeError as error:
        raise InvalidRequest("the body has a lone surrogate, which no text can have", hint=_HINT) from error
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", hint=_HINT) from error
    except ValueError as error:
        raise InvalidRequest("the body has a number that is too long", hint=_HINT) from error
    except RecursionError as error:
        raise _too_deep(max_depth) from error
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0][:64]
        raise InvalidRequest(f"{twice!r} is in the body twice", param=twice, hint="send each field once")
    return value


def _no_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body has {name}, which is not JSON", hint="send finite numbers")


def _check_depth(value: Any, limit: int) -> None:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep(limit)


def _too_deep(limit: int) -> InvalidRequest:
    return InvalidRequest(f"the body is nested deeper than {limit} levels", hint="no field needs nesting")


def _kind(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
