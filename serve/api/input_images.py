"""The pictures that a request brings along: files, base64, or pictures that are here already.

They are decoded in a thread, a few at a time, and stored before the job that needs them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from serve.api.deps import Door
from serve.api.generation import ImageBody
from serve.errors import InvalidRequest, NotFound
from serve.inputs import NAME, NOTHING, Brought, Param, control, source
from serve.messages import JobQuery, Submission
from serve.settings import LimitSettings

ASSET, INPUT = "asset:", "input:"

_DATA_URL = re.compile(r"data:(?:[a-z0-9.+-]+/[a-z0-9.+-]+)?(?:;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)
_HINT = "send a data URL, base64, or asset:ID of one of your pictures"


@dataclass(frozen=True, slots=True)
class Given:
    """As the request has them: the bytes of files, or text."""

    image: bytes | str | None
    mask: bytes | str | None
    control_image: bytes | str | None = None

    @classmethod
    def of(cls, body: ImageBody) -> Given:
        return cls(body.image, body.mask, body.control_image)


@asynccontextmanager
async def opened(door: Door, given: Given, *, alpha_is_mask: bool = False) -> AsyncIterator[Brought]:
    """Decoded, for as long as the block lasts. Raises InvalidRequest, or NotFound for what is not the caller's."""
    if given.image is None and given.mask is not None:
        raise InvalidRequest("mask is sent without image", param="mask", hint="send the picture that it belongs to")
    image = await _file_if_any(door, "image", given.image)
    mask = await _file_if_any(door, "mask", given.mask)
    lines = await _file_if_any(door, "control_image", given.control_image)
    if image is None and lines is None:
        yield NOTHING
        return
    decode = partial(_brought, image, mask, lines, door.settings.limits, alpha_is_mask=alpha_is_mask)
    async with door.decoding:
        yield await asyncio.to_thread(decode)


async def kept(door: Door, submission: Submission, brought: Brought) -> Submission:
    """With its input pictures stored, in the size that is drawn. Raises InvalidRequest, StoreFull."""
    request = submission.request
    inputs = await asyncio.to_thread(brought.fitted, request.width, request.height)
    for one in inputs.values():
        await door.assets.write_input(one.name, one.data)
    named: dict[str, Any] = {field: one.name for field, one in inputs.items()}
    return replace(submission, request=replace(request, **named))


def _brought(
    image: bytes | None, mask: bytes | None, lines: bytes | None, limits: LimitSettings, *, alpha_is_mask: bool
) -> Brought:
    return Brought(
        source=None if image is None else source(image, mask, limits, alpha_is_mask=alpha_is_mask),
        control=None if lines is None else control(lines, limits),
    )


async def own_input(door: Door, name: str, param: str) -> bytes:
    """One that a job of the caller keeps. Raises NotFound."""
    if NAME.fullmatch(name) and await door.service.find(JobQuery(user=door.whose, input=name, limit=1)):
        data = await door.assets.read_input(name)
        if data is not None:
            return data
    hint = "it goes with the last picture of its job; send the picture again"
    raise NotFound(f"no input picture {name[:64]!r}", param=param, hint=hint)


async def _file_if_any(door: Door, param: Param, given: bytes | str | None) -> bytes | None:
    return None if given is None else await _file(door, param, given)


async def _file(door: Door, param: Param, given: bytes | str) -> bytes:
    if isinstance(given, bytes):
        return given
    if given.startswith(ASSET):
        return await _own_asset(door, param, given.removeprefix(ASSET))
    if given.startswith(INPUT):
        return await own_input(door, given.removeprefix(INPUT), param)
    if re.match("https?://", given, re.IGNORECASE):
        raise InvalidRequest(f"{param} is a URL, and URLs are not fetched", param=param, hint=_HINT)
    if len(given) <= door.settings.limits.body_bytes:
        return _decoded(param, given)
    return await asyncio.to_thread(_decoded, param, given)


async def _own_asset(door: Door, param: Param, asset_id: str) -> bytes:
    try:
        await door.asset(asset_id)
        return (await door.assets.read(asset_id)).data
    except NotFound as error:
        error.param = param
        raise


def _decoded(param: Param, text: str) -> bytes:
    data_url = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[data_url.end() if data_url else 0 :], validate=True)
    except (binascii.Error, ValueError) as error:
        said = f"{text[:32]!r}..." if len(text) > 32 else repr(text)
        raise InvalidRequest(f"{param} is not base64: {said}", param=param, hint=_HINT) from error
