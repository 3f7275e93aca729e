"""A multipart form as JSON bodies have it: every field with its type, and files."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve.api.body import within
from serve.errors import InvalidRequest
from serve.settings import LimitSettings

MAX_FIELDS, MAX_FILES = 100, 3  # a picture, its mask, and what a ControlNet follows
_SCALARS = {"integer": re.compile(r"-?[0-9]{1,18}"), "number": re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")}
_HINT = "send multipart/form-data as curl's -F and OpenAI's clients make it"


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def read_form(
    request: Request, limits: LimitSettings, kind: type[BaseModel], files: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The fields, typed as `kind` has them, and the files by what `files` calls their fields.

    Raises InvalidRequest or BodyTooLarge.
    """
    bytes_of_files = MAX_FILES * limits.image_bytes
    tail = b""

    async def body() -> AsyncGenerator[bytes, None]:
        nonlocal tail
        async for chunk in within(request, limits.body_bytes + bytes_of_files):
            tail = (tail + chunk)[-8:]
            yield chunk
        if not tail.rstrip().endswith(b"--"):  # raised in here, so that the parser closes what it has opened
            raise InvalidRequest("the form is cut short: its closing boundary is missing", hint=_HINT)

    parser = MultiPartParser(
        request.headers, body(), max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=limits.body_bytes
    )
    parser.spool_max_size = bytes_of_files  # in memory: they are not large
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}", hint=_HINT) from error
    try:
        return await _sorted(form.multi_items(), kind, files)
    finally:
        await form.close()


async def _sorted(
    items: list[tuple[str, UploadFile | str]], kind: type[BaseModel], files: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    types = kind.model_json_schema()["properties"]
    fields: dict[str, Any] = {}
    found: dict[str, bytes] = {}
    for sent, value in items:
        name = files.get(sent, sent)
        if name in found or name in fields:
            many = "this model begins with one picture" if name == "image" else "send each field once"
            raise InvalidRequest(f"{name} is in the form twice", param=name, hint=many)
        if isinstance(value, str):
            fields[name] = _typed(value, types.get(name, {}))
        elif name in files.values():
            found[name] = await value.read()
        else:
            raise InvalidRequest(
                f"{name[:64]} is a file", param=name[:64], hint="files are image, mask and control_image"
            )
    return fields, found


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """As it is in JSON; what cannot be is left for the checks of the field to refuse."""
    kinds = {option.get("type") for option in (schema, *schema.get("anyOf", ()))}
    if "boolean" in kinds and text in ("true", "false"):
        return text == "true"
    for kind, pattern in _SCALARS.items():
        if kind in kinds and pattern.fullmatch(text):
            return float(text) if "." in text else int(text)
    return None if text == "" and "null" in kinds and "string" not in kinds else text
