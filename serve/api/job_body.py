"""The body of a job, from the caller or from a job to draw again, and how it becomes a submission."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from ulid import ULID

from serve.api.deps import Door
from serve.api.generation import ImageBody
from serve.api.order import Resolved, resolve_image
from serve.messages import JobView, Submission


class JobBody(ImageBody):
    """The body of `POST /v1/jobs`; a rerun's names only what changes."""

    model_config = ConfigDict(title="ImageJob")

    previews: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="number of partial pictures among the job's events, 0 to 3"
    )
    webhook_url: str | None = Field(None, description="an https URL that is told when the job has ended")


def resolve_job(door: Door, body: JobBody, unknown: list[str], parent_id: str | None) -> tuple[Submission, Resolved]:
    """Raises InvalidRequest and its kinds."""
    if body.webhook_url is not None:
        door.webhook_guard.check(body.webhook_url)
    resolved = resolve_image(door, body, unknown, body.output_format or "png")
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
    )
    return submission, resolved


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
        "priority": view.priority,
        "deadline_ms": view.deadline_ms,
    }


def rerun_body(parent: JobView, overrides: dict[str, Any]) -> dict[str, Any]:
    """A quality that is asked for now wins over the steps that it was resolved to then."""
    body = as_body(parent)
    if overrides.get("quality") is not None:
        del body["num_inference_steps"]
    return body | overrides
