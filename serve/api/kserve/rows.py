"""The rows of a request as jobs of its model's queue, each like a request for one picture at any other door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ulid import ULID

from serve.api.deps import Door
from serve.api.generation import ImageBody, parse
from serve.api.input_images import Given, kept, opened
from serve.api.kserve.options import Options
from serve.api.order import resolve_image
from serve.errors import InvalidRequest
from serve.inputs import NOTHING, Brought
from serve.messages import Batch, Submission

RANDOM_SEED = -1
MAX_GUIDANCE = 20


async def begun(door: Door, model: str, rows: Sequence[Mapping[str, Any]], options: Options) -> list[Submission]:
    """The same, with the picture stored that all rows begin with, if there is one. Raises NotFound, too."""
    async with opened(door, Given(options.image, options.mask, options.control_image)) as brought:
        jobs = submissions(door, model, rows, options, brought)
        return [await kept(door, job, brought) for job in jobs]


def submissions(
    door: Door, model: str, rows: Sequence[Mapping[str, Any]], options: Options, brought: Brought = NOTHING
) -> list[Submission]:
    """In the order of the rows. Raises InvalidRequest and its kinds, which name the row, and Forbidden."""
    for side in ("width", "height"):
        if len({row.get(side) for row in rows}) > 1:
            raise InvalidRequest(f"{side} differs between rows", param=side, hint="send one request for each size")
    if len(rows) == 1:
        return [_submission(door, model, rows[0], options, brought)]
    batch = Batch(id=str(ULID()), jobs=len(rows))
    return [replace(_named(door, model, row, options, at, brought), batch=batch) for at, row in enumerate(rows)]


def _named(door: Door, model: str, row: Mapping[str, Any], options: Options, at: int, brought: Brought) -> Submission:
    try:
        return _submission(door, model, row, options, brought)
    except InvalidRequest as error:
        error.message = f"row {at}: {error.message}"
        raise


def _submission(door: Door, model: str, row: Mapping[str, Any], options: Options, brought: Brought) -> Submission:
    seed = row.get("seed", RANDOM_SEED)
    _check("seed", seed, RANDOM_SEED, 2**63 - 1)
    _check("steps", row.get("steps"), 1, door.offer(model).settings.limits.max_steps)
    _check("guidance", row.get("guidance"), 0, MAX_GUIDANCE)
    resolved = resolve_image(door, _body(door, model, row, options), [], "png", brought)
    request = resolved.request if seed == RANDOM_SEED else replace(resolved.request, seed=seed)
    return Submission(
        job_id=str(ULID()),
        request=request,
        prompt_tokens=resolved.prompt_tokens,
        user=door.user,
        priority=door.caller.priority(options.priority, "interactive"),
        quota=door.caller.quota,
        seeded=seed != RANDOM_SEED,
        preset=resolved.preset,
    )


def _body(door: Door, model: str, row: Mapping[str, Any], options: Options) -> ImageBody:
    """Without the seed, which may be larger here than a JavaScript number."""
    default = door.offer(model).settings.default_px
    sides = [row.get(side, default) for side in ("width", "height")]
    fields = {
        "model": model,
        "prompt": row["prompt"],
        "negative_prompt": row.get("negative_prompt"),
        "size": f"{sides[0]}x{sides[1]}" if {"width", "height"} & row.keys() else None,
        "num_inference_steps": row.get("steps"),
        "guidance_scale": row.get("guidance"),
        "preset": options.preset,
        "style_preset": options.style_preset,
        **options.how,
    }
    return parse(ImageBody, fields)[0]


def _check(name: str, value: float | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidRequest(f"{name} is {value}, it may be {least} to {most}", param=name)


def job_headers(jobs: Iterable[Submission]) -> dict[str, str]:
    return {"X-Job-Id": ", ".join(job.job_id for job in jobs)}
