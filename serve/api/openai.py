"""OpenAI's images and models routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api import answers, checks
from serve.api.accept import preferred_image
from serve.api.body import read_object
from serve.api.control import controlnets_json
from serve.api.deps import Door, TheDoor
from serve.api.disconnect import detach, unless_gone
from serve.api.docs import GENERATION, MODEL, MODELS
from serve.api.errors import error_body
from serve.api.follow import follow, follow_submitted, submitted
from serve.api.generation import PICTURES, GenerationBody, parse
from serve.api.how import adapters_json
from serve.api.idempotency import keyed
from serve.api.input_images import Given, kept, opened
from serve.api.limits_json import limits_json
from serve.api.order import MASKED_STRENGTH, STRENGTH, Order, resolve
from serve.api.sse import EventStream
from serve.errors import NotFound, ZImageError
from serve.inputs import FORMATS
from serve.messages import CacheUse, Event, Preview, StoredImage, Succeeded

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_log = structlog.get_logger(__name__)


@router.post("/images/generations", **GENERATION)
async def generate(request: Request, door: TheDoor) -> Response:
    body, unknown = parse(GenerationBody, await read_object(request, door.settings.limits, PICTURES))
    async with opened(door, Given.of(body)) as brought:
        order = resolve(door, body, unknown, preferred_image(request.headers.get("accept", "")), brought)
        order = replace(order, submission=await kept(door, order.submission, brought))
    return await answer(request, door, order)


async def answer(request: Request, door: Door, order: Order) -> Response:
    order = replace(order, submission=keyed(order.submission, request.headers, order.seed))
    await door.check_room(order.request.model)
    _log.info(
        "generation", job_id=order.submission.job_id, size=order.size, steps=order.request.steps, n=order.request.n
    )
    if order.submission.idempotency_key is not None:
        order = await _submitted(door, order)
    if order.stream:
        return await _stream(request, door, order)
    done = await unless_gone(request.receive, finished(door, order))
    return await (raw_answer(door, order, done) if order.raw else _json(request, door, order, done))


@router.get("/models", **MODELS)
async def list_models(door: TheDoor) -> dict[str, Any]:
    names = checks.model_names(door.settings, door.presets.value.aliases)
    return {"object": "list", "data": [_model(door, name, root) for name, root in names.items()]}


@router.get("/models/{model}", **MODEL)
async def get_model(model: str, door: TheDoor) -> dict[str, Any]:
    return _model(door, model, checks.model(model, door.settings, door.presets.value.aliases))


def _model(door: Door, name: str, root: str) -> dict[str, Any]:
    """An alias names the model it stands for as its `root`."""
    settings = door.offer(root).settings
    about = {"id": name, "object": "model", "created": door.opened_at, "owned_by": "zimage-serve", "root": root}
    if name == root:
        about["adapters"] = adapters_json(settings)
        about["controlnets"] = controlnets_json(settings)
    takes = {"input_modalities": ["text", "image"], "output_modalities": ["image"], "image_input": _takes(door)}
    return about | takes | limits_json(settings)


def _takes(door: Door) -> dict[str, Any]:
    limits = door.settings.limits
    return {
        "formats": [format.lower() for format in FORMATS],
        "max_bytes": limits.image_bytes,
        "max_pixels": limits.image_pixels,
        "max_images": 1,
        "mask": True,
        "strength": {"minimum": 0.01, "maximum": 1, "default": STRENGTH, "default_with_mask": MASKED_STRENGTH},
    }


async def _submitted(door: Door, order: Order) -> Order:
    """With the id and the seed of the job that the key stands for."""
    job_id = await submitted(door.service, order.submission)
    if job_id == order.submission.job_id:
        return order
    view = await door.service.get(job_id)
    submission = replace(order.submission, job_id=job_id, request=view.request)
    return replace(order, submission=submission, replayed=True)


def _events(door: Door, order: Order) -> AsyncGenerator[Event, None]:
    """A job with a key outlives its client, whose second try then finds it."""
    timeout_s = door.settings.timeouts.request_s
    if order.submission.idempotency_key is not None:
        return follow_submitted(door.service, order.submission.job_id, timeout_s)
    return follow(door.service, order.submission, timeout_s)


async def finished(door: Door, order: Order) -> Succeeded:
    async with aclosing(_events(door, order)) as events:
        async for event in events:
            if isinstance(event, Succeeded):
                _check_kept(event)
                return event
    raise ZImageError("the job ended without a result")


def _check_kept(done: Succeeded) -> None:
    """A repetition of a job whose pictures were deleted meanwhile. Raises NotFound."""
    for image in done.images:
        if image.deleted:
            hint = "send it with another Idempotency-Key to have it drawn again"
            raise NotFound(f"picture {image.asset_id} has been deleted", hint=hint)


async def raw_answer(door: Door, order: Order, done: Succeeded) -> Response:
    asset = await door.assets.read(done.images[0].asset_id)
    headers = answers.headers(order, done.cache) | {"X-Asset-Id": asset.info.asset_id}
    return Response(asset.data, media_type=asset.media_type, headers=headers)


async def _json(request: Request, door: Door, order: Order, done: Succeeded) -> Response:
    images = [await _image(request, door, order, image) for image in done.images]
    content = await asyncio.to_thread(json.dumps, answers.answer_json(order, images, done))
    headers = answers.headers(order, done.cache) | {"X-Asset-Id": ", ".join(image.asset_id for image in done.images)}
    return Response(content, media_type="application/json", headers=headers)


async def _image(request: Request, door: Door, order: Order, image: StoredImage) -> dict[str, Any]:
    if order.links:
        url = door.asset_url(door.base_url(request), image.asset_id, time.time())
        return answers.image_json(order, image, {"url": url})
    data = (await door.assets.read(image.asset_id)).data
    return answers.image_json(order, image, {"b64_json": answers.b64(data)})


async def _stream(request: Request, door: Door, order: Order) -> Response:
    """Nothing is sent before the first event, so a job that fails earlier is answered with its status."""
    chunks = _chunks(request, door, order)
    cache, first = await unless_gone(request.receive, anext(chunks))
    return EventStream(_guarded(request, first, chunks), answers.headers(order, cache))


async def _chunks(request: Request, door: Door, order: Order) -> AsyncGenerator[tuple[CacheUse, bytes], None]:
    """Previews are for this stream alone and go when it ends, unless a key lets others have them."""
    try:
        async with aclosing(_events(door, order)) as events:
            async for event in events:
                if isinstance(event, Preview):
                    data = await door.assets.read_preview(event.key)
                    if data is not None:
                        joined = not event.key.startswith(f"{order.submission.job_id}/")  # drawn for another job
                        partial = answers.partial_event(order, event.index, data, event.at)
                        yield "join" if joined else "miss", answers.encode_event(partial)
                elif isinstance(event, Succeeded):
                    _check_kept(event)
                    yield event.cache, await _completed(request, door, order, event)
    finally:
        if order.submission.previews and order.submission.idempotency_key is None:
            detach(door.assets.delete_previews(order.submission.job_id))


async def _completed(request: Request, door: Door, order: Order, done: Succeeded) -> bytes:
    """The picture itself, which the event must carry, and a link where one was asked for."""
    image = await _image(request, door, order, done.images[0]) if order.links else {}
    asset = await door.assets.read(done.images[0].asset_id)
    event = answers.completed_event(order, asset, answers.image_json(order, done.images[0], image), done.at)
    return await asyncio.to_thread(answers.encode_event, event)


async def _guarded(
    request: Request, first: bytes, chunks: AsyncGenerator[tuple[CacheUse, bytes], None]
) -> AsyncGenerator[bytes, None]:
    """The status is sent: from here on an error is the stream's last event."""
    async with aclosing(chunks):
        yield first
        try:
            async for _, chunk in chunks:
                yield chunk
        except Exception as error:
            yield answers.encode_data({"error": error_body(request, error)})
