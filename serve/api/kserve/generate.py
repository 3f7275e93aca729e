"""`generate` and `generate_stream`: one picture, asked for in one flat object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.api.answers import encode_data
from serve.api.body import parse_object
from serve.api.deps import Door, TheDoor
from serve.api.disconnect import unless_gone
from serve.api.errors import shown_error
from serve.api.kserve import tensors
from serve.api.kserve.answer import drawn, generate_json, head
from serve.api.kserve.asked import ThePipeline
from serve.api.kserve.body import read_body
from serve.api.kserve.described import GENERATE, GENERATE_STREAM
from serve.api.kserve.draw import draw, events
from serve.api.kserve.errors import error_json
from serve.api.kserve.models import INPUTS
from serve.api.kserve.options import Options, check_names, read_options
from serve.api.kserve.request import InferRequest, read_id
from serve.api.kserve.rows import begun, job_headers
from serve.api.sse import EventStream
from serve.errors import InvalidRequest
from serve.messages import Progress, Submission, Succeeded

router = APIRouter(prefix="/v2", tags=["KServe v2"])


@router.post("/models/{model}/generate", **GENERATE)
@router.post("/models/{model}/versions/{version}/generate", include_in_schema=False)
async def generate(request: Request, door: TheDoor, model: ThePipeline) -> Response:
    asked = await _read(request, door)
    rows = await begun(door, model.served, asked.rows, asked.options)
    await door.check_room(model.name)
    drawing = draw(door.service, rows, door.settings.timeouts.request_s, asked.options.timeout_s)
    done = await unless_gone(request.receive, drawing)
    (row,) = await drawn(door, done)
    return JSONResponse(generate_json(model.name, asked.id, row), headers=job_headers(rows))


@router.post("/models/{model}/generate_stream", **GENERATE_STREAM)
@router.post("/models/{model}/versions/{version}/generate_stream", include_in_schema=False)
async def generate_stream(request: Request, door: TheDoor, model: ThePipeline) -> Response:
    """Nothing is sent before the first event, so a job that fails earlier is answered with its status."""
    asked = await _read(request, door)
    rows = await begun(door, model.served, asked.rows, asked.options)
    await door.check_room(model.name)
    chunks = _chunks(door, model.name, asked, rows[0])
    first = await unless_gone(request.receive, anext(chunks))
    return EventStream(_guarded(request, first, chunks), job_headers(rows))


async def _read(request: Request, door: Door) -> InferRequest:
    """One row. Raises InvalidRequest and its kinds."""
    limits = door.settings.limits
    content = parse_object(await read_body(request, limits), limits)
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters is not an object", param="parameters")
    fields = {name: value for name, value in content.items() if name not in ("id", "parameters")}
    if twice := fields.keys() & parameters.keys():
        raise InvalidRequest(f"{min(twice)[:64]!r} is given twice", param="parameters")
    fields |= parameters
    row = {name: _value(name, fields.pop(name)) for name in INPUTS if name in fields}
    if "prompt" not in row:
        raise InvalidRequest("prompt is required", param="prompt")
    return InferRequest(id=read_id(content), rows=(row,), outputs=(), options=_options(fields))


def _value(name: str, value: Any) -> Any:
    return tensors.from_json(INPUTS[name], value if isinstance(value, list) else [value], 1)[0]


def _options(fields: dict[str, Any]) -> Options:
    """What is neither an input nor an option is ignored, whatever it is."""
    check_names(fields)
    return read_options({name: value for name, value in fields.items() if isinstance(value, str | int | float)})


async def _chunks(door: Door, model: str, asked: InferRequest, row: Submission) -> AsyncGenerator[bytes, None]:
    known = head(model, asked.id)
    following = events(door.service, row, door.settings.timeouts.request_s, asked.options.timeout_s)
    async with aclosing(following) as happening:
        async for event in happening:
            if isinstance(event, Progress):
                yield encode_data(known | {"step": event.step, "steps": event.steps})
            elif isinstance(event, Succeeded):
                (picture,) = await drawn(door, [event])
                yield await asyncio.to_thread(encode_data, generate_json(model, asked.id, picture))


async def _guarded(request: Request, first: bytes, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The status is sent: from here on an error is the stream's last event."""
    async with aclosing(chunks):
        yield first
        try:
            async for chunk in chunks:
                yield chunk
        except Exception as error:
            yield encode_data(error_json(shown_error(request, error), request.state.request_id))
