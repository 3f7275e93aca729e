"""The body of a job, from the caller or from a job to draw again, and how it becomes a submission."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from ulid import ULID

from serve.api.deps import Door
from serve.api.generation import ImageBody
from serve.api.how import FIELDS
from serve.api.input_images import INPUT
from serve.api.order import FILLED_UP, Resolved, resolve_image
from serve.inputs import NOTHING, Brought
from serve.messages import ImageRequest, JobView, Submission

_ASKS_ANEW = {"prompt", "preset", "style_preset"}


class JobBody(ImageBody):
    """The body of `POST /v1/jobs`; a rerun's names only what changes."""

    model_config = ConfigDict(title="ImageJob")

    previews: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="number of partial pictures among the job's events, 0 to 3"
    )
    webhook_url: str | None = Field(None, description="an https URL that is told when the job has ended")


def resolve_job(
    door: Door, body: JobBody, unknown: list[str], parent_id: str | None, brought: Brought = NOTHING
) -> tuple[Submission, Resolved]:
    """Raises InvalidRequest and its kinds."""
    if body.webhook_url is not None:
        door.webhook_guard.check(body.webhook_url)
    resolved = resolve_image(door, body, unknown, body.output_format or "png", brought)
    submission = Submission(
        job_id=str(ULID()),
        request=resolved.request,
        prompt_tokens=resolved.prompt_tokens,
        user=door.user,
        priority=door.caller.priority(body.priority, "standard"),
        deadline_ms=body.deadline_ms,
        quota=door.caller.quota,
        previews=body.previews or 0,
        seeded=body.seed is not None,
        cache=body.cache or "auto",
        parent_id=parent_id,
        webhook_url=body.webhook_url,
        preset=resolved.preset,
        request_id=door.request_id,
        traceparent=door.traceparent,
    )
    return submission, resolved


def _as_asked(parent: JobView, body: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Without what a preset had filled in, or is to fill in now."""
    use = parent.preset
    if use is None:
        return _without(body, FILLED_UP) if overrides.get("preset") else body
    explicit = {"num_inference_steps" if name == "quality" else name for name in use.explicit}
    own = {"prompt": use.prompt, "preset": use.preset, "style_preset": use.style_preset}
    return _without(body, set(FILLED_UP) - explicit) | own


def _without(body: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in set(names)}


def as_body(view: JobView) -> dict[str, Any]:
    """What to send to have the same pictures drawn again."""
    request = view.request
    return {
        "model": request.model,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "size": f"{request.width}x{request.height}",
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "seed": request.seed,
        "n": request.n,
        "output_format": request.output_format,
        "output_compression": request.output_compression,
        "deterministic": request.deterministic,
        **how_drawn(request),
        "priority": view.priority,
        "deadline_ms": view.deadline_ms,
        **began_with(request),
    }


def how_drawn(request: ImageRequest) -> dict[str, Any]:
    """Only what is not at its default: it is of use to few."""
    told = {name: getattr(request, name) for name in FIELDS if name in request.said()}
    return told | ({"adapter_scale": request.adapter_scale} if request.adapter else {})


def began_with(request: ImageRequest) -> dict[str, Any]:
    """The pictures that it was drawn from, as they can be sent again."""
    named = {"image": request.image, "mask": request.mask, "control_image": request.control_image}
    sent = {param: None if name is None else f"{INPUT}{name}" for param, name in named.items()}
    if request.controlnet is None:  # of use to few
        return {**_without(sent, ("control_image",)), "strength": request.strength}
    told = {"controlnet": request.controlnet, "controlnet_conditioning_scale": request.controlnet_conditioning_scale}
    return {**sent, "strength": request.strength, **told}


def rerun_body(parent: JobView, overrides: dict[str, Any]) -> dict[str, Any]:
    """A quality that is asked for now wins over the steps that it was resolved to then.

    A new prompt goes into the preset that the old one was in, as it is today; so does the old one into a new preset.
    """
    body = as_body(parent)
    if "image" in overrides:  # another one, or none: what belonged to the old one goes with it
        body = _without(body, ("mask", "strength"))
    if overrides.get("controlnet", "") is None:  # none any more
        body = _without(body, ("control_image", "controlnet_conditioning_scale"))
    if overrides.keys() & _ASKS_ANEW:
        body = _as_asked(parent, body, overrides)
    if overrides.get("quality") is not None:
        del body["num_inference_steps"]
    return body | overrides
