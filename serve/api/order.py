"""A generation body resolved against the settings: what is drawn, and how it is answered."""

from __future__ import annotations

from dataclasses import dataclass

from ulid import ULID

from serve.api import checks
from serve.api.accept import RawBytes
from serve.api.deps import Door
from serve.api.generation import GenerationBody, Quality
from serve.errors import InvalidRequest
from serve.messages import ImageFormat, ImageRequest, Submission
from serve.settings import Settings

_NAMED: dict[str | None, Quality] = {
    "low": "low",
    "medium": "medium",
    "standard": "medium",
    "high": "high",
    "hd": "high",
    "xhigh": "xhigh",
    "max": "max",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`input_tokens` counts what the text encoder reads; `ignored` names fields without effect."""

    submission: Submission
    quality: Quality
    links: bool
    stream: bool
    raw: bool
    input_tokens: int
    ignored: tuple[str, ...]

    @property
    def request(self) -> ImageRequest:
        return self.submission.request

    @property
    def size(self) -> str:
        return f"{self.request.width}x{self.request.height}"


def resolve(door: Door, body: GenerationBody, unknown: list[str], raw: RawBytes | None) -> Order:
    """Raises InvalidRequest and its kinds."""
    if body.stream:
        raw = None
    _refuse_unsupported(body)
    request = _request(body, door.settings, raw)
    checks.not_blank("prompt", body.prompt)
    prompt_tokens = checks.text("prompt", body.prompt, door.settings.limits, door.prompts)
    negative = body.negative_prompt or ""
    negative_tokens = checks.text("negative_prompt", negative, door.settings.limits, door.prompts)
    submission = Submission(
        job_id=str(ULID()),
        request=request,
        prompt_tokens=prompt_tokens,
        priority=body.priority or "interactive",
        deadline_ms=body.deadline_ms,
        previews=(body.partial_images or 0) if body.stream else 0,
    )
    return Order(
        submission=submission,
        quality=_NAMED.get(body.quality, "medium"),
        links=body.response_format == "url",
        stream=bool(body.stream),
        raw=raw is not None,
        input_tokens=prompt_tokens + (negative_tokens if request.guided else 0),
        ignored=(*_without_effect(body, request), *unknown),
    )


def _request(body: GenerationBody, settings: Settings, raw: RawBytes | None) -> ImageRequest:
    n = _count(body, settings, raw)
    width, height = checks.size(body.size, settings)
    guidance = body.guidance_scale or 0.0
    output_format = _format(body, raw)
    return ImageRequest(
        model=checks.model(body.model, settings),
        prompt=body.prompt,
        negative_prompt=(body.negative_prompt or "") if guidance else "",
        width=width,
        height=height,
        steps=checks.steps(body.num_inference_steps, _NAMED.get(body.quality), settings),
        guidance=guidance,
        seed=checks.seed(body.seed, n),
        n=n,
        output_format=output_format,
        output_compression=None if output_format == "png" else body.output_compression,
        deterministic=bool(body.deterministic),
    )


def _refuse_unsupported(body: GenerationBody) -> None:
    if body.background == "transparent":
        raise InvalidRequest("background cannot be transparent", param="background", hint='send "auto" or "opaque"')
    for param, name in (("preset", body.preset), ("style_preset", body.style_preset)):
        if name is not None:
            raise InvalidRequest(
                f"unknown {param} {name[:64]!r}", param=param, hint=f"leave {param} out: there are none"
            )


def _count(body: GenerationBody, settings: Settings, raw: RawBytes | None) -> int:
    n, most = body.n or 1, settings.limits.max_n
    if n > most:
        raise InvalidRequest(f"n is {n}, the limit is {most}", param="n", hint="send several requests")
    if n > 1 and body.stream:
        raise InvalidRequest(f"n is {n}, a stream carries one picture", param="n", hint="leave out n or stream")
    if n > 1 and raw:
        raise InvalidRequest(f"n is {n}, raw bytes are one picture", param="n", hint="send Accept: application/json")
    return n


def _format(body: GenerationBody, raw: RawBytes | None) -> ImageFormat:
    if raw is None or raw.format is None:
        return body.output_format or "png"
    if body.output_format not in (None, raw.format):
        raise InvalidRequest(
            f"output_format is {body.output_format}, but the Accept header asks for image/{raw.format}",
            param="output_format",
            hint="leave output_format out, or let both name one format",
        )
    return raw.format


def _without_effect(body: GenerationBody, request: ImageRequest) -> list[str]:
    """Known fields that were sent, but that another field makes meaningless."""
    unused = {
        "output_compression": body.output_compression is not None and request.output_format == "png",
        "negative_prompt": bool(body.negative_prompt) and not request.guided,
        "partial_images": bool(body.partial_images) and not body.stream,
    }
    return [name for name, ignored in unused.items() if ignored]
