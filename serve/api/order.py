"""A body resolved against the settings: what is drawn, and how it is answered."""

from __future__ import annotations

from dataclasses import dataclass

from ulid import ULID

from serve.api import checks
from serve.api.accept import RawBytes
from serve.api.control import FIELDS as CONTROL
from serve.api.control import control
from serve.api.control import without_effect as without_control
from serve.api.deps import Door
from serve.api.generation import GenerationBody, ImageBody, Quality
from serve.api.how import FIELDS, how, without_effect
from serve.errors import InvalidRequest
from serve.inputs import NOTHING, Brought
from serve.messages import ImageFormat, ImageRequest, PresetUse, Submission
from serve.presets.choice import Choice, Wrapped
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
STRENGTH, MASKED_STRENGTH = 0.6, 1.0  # as diffusers' pipelines have them
FILLED_UP = ("size", "num_inference_steps", "quality", "guidance_scale", "negative_prompt", *FIELDS, *CONTROL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Tokens are counted as the text encoder reads them; `ignored` names fields without effect."""

    request: ImageRequest
    prompt_tokens: int
    negative_tokens: int
    ignored: tuple[str, ...]
    preset: PresetUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One synchronous call. `seed` is the one asked for; `replayed` says that its job was there before.

    `events` is what the names of a stream's events begin with.
    """

    submission: Submission
    seed: int | None
    quality: Quality
    links: bool
    stream: bool
    raw: bool
    input_tokens: int
    ignored: tuple[str, ...]
    replayed: bool = False
    events: str = "image_generation"

    @property
    def request(self) -> ImageRequest:
        return self.submission.request

    @property
    def size(self) -> str:
        return f"{self.request.width}x{self.request.height}"


def resolve(
    door: Door, body: GenerationBody, unknown: list[str], raw: RawBytes | None, brought: Brought = NOTHING
) -> Order:
    """Raises InvalidRequest and its kinds."""
    if body.stream:
        raw = None
    _check_one_picture(body, raw)
    unused = ["partial_images"] if body.partial_images and not body.stream else []
    resolved = resolve_image(door, body, [*unused, *unknown], _format(body, raw), brought)
    submission = Submission(
        job_id=str(ULID()),
        request=resolved.request,
        prompt_tokens=resolved.prompt_tokens,
        user=door.user,
        priority=door.caller.priority(body.priority, "interactive"),
        deadline_ms=body.deadline_ms,
        quota=door.caller.quota,
        previews=(body.partial_images or 0) if body.stream else 0,
        seeded=body.seed is not None,
        cache=body.cache or "auto",
        preset=resolved.preset,
        request_id=door.request_id,
        traceparent=door.traceparent,
    )
    return Order(
        submission=submission,
        seed=body.seed,
        quality=_NAMED.get(body.quality, "medium"),
        links=body.response_format == "url",
        stream=bool(body.stream),
        raw=raw is not None,
        input_tokens=resolved.prompt_tokens + (resolved.negative_tokens if resolved.request.guided else 0),
        ignored=resolved.ignored,
    )


def resolve_image(
    door: Door, body: ImageBody, ignored: list[str], output_format: ImageFormat, brought: Brought = NOTHING
) -> Resolved:
    """What all ways to ask for pictures share; `ignored` are names that have no effect here.

    Pictures that were `brought` are not stored yet, and have no names in the request.
    Raises InvalidRequest and its kinds, and Forbidden.
    """
    door.caller.check_preset(body.preset)
    _refuse_transparency(body)
    version, catalog = door.presets.status.hash, door.presets.value
    model = checks.model(body.model, door.settings, catalog.aliases)
    if body.model is None:
        model = catalog.home(body.preset, body.style_preset) or model
    offer = door.offer(model)
    choice = Choice.of(catalog.of(model), catalog.aliases.get(body.model or ""), body.preset, body.style_preset)
    wrapped = choice.wrap(body.prompt)
    request = request_of(body, choice, wrapped, offer.settings, output_format, brought)
    checks.not_blank("prompt", body.prompt)
    choice.check_words(body.prompt)
    limits, prompts = offer.settings.limits, offer.prompts
    negative = (body.negative_prompt or "") if not request.guided else request.negative_prompt
    return Resolved(
        request=request,
        prompt_tokens=checks.wrapped_text(wrapped, choice, limits, prompts),
        negative_tokens=checks.text("negative_prompt", negative, limits, prompts),
        ignored=(*fields_without_effect(body, choice, request), *ignored),
        preset=_use(body, choice, version) if choice else None,
    )


def _use(body: ImageBody, choice: Choice, version: str) -> PresetUse:
    auto = (None, "auto")
    explicit = [name for name in FILLED_UP if getattr(body, name) not in auto]
    return PresetUse(
        preset=choice.preset.name if choice.preset else None,
        style_preset=choice.style.name if choice.style else None,
        version=version,
        prompt=body.prompt,
        explicit=tuple(explicit),
    )


def request_of(
    body: ImageBody,
    choice: Choice,
    prompt: Wrapped,
    settings: Settings,
    output_format: ImageFormat,
    brought: Brought,
) -> ImageRequest:
    """Explicit fields, else the preset's, else the model's, whose settings these are."""
    n = _count(body, settings)
    if brought.size is None or body.size not in (None, "auto") or choice.locks_size:
        width, height = checks.size(choice.size(body.size), settings)
    else:
        width, height = checks.own_size(brought.size, settings)
    guidance = choice.guidance(body.guidance_scale, settings.default_guidance)
    quality = None if choice.ignores(named := _NAMED.get(body.quality)) else named
    steps = checks.steps(choice.steps(body.num_inference_steps, quality), quality, settings)
    choice.check_limits(n, width, height, steps)
    negative = choice.negative(body.negative_prompt)
    return ImageRequest(
        model=settings.served_model_name,
        prompt=prompt.text,
        negative_prompt=negative if guidance else "",
        width=width,
        height=height,
        steps=steps,
        guidance=guidance,
        seed=checks.seed(body.seed, n),
        n=n,
        output_format=output_format,
        output_compression=None if output_format == "png" else body.output_compression,
        deterministic=bool(body.deterministic),
        strength=_strength(body, brought),
        **how(body, choice, settings, guidance),
        **control(body, brought, choice, settings),
    )


def _strength(body: ImageBody, brought: Brought) -> float | None:
    """None where it begins with noise: a ControlNet that is given the mask draws all of it."""
    source = brought.source
    if source is None or (source.mask is not None and brought.control is not None):
        return None
    default = STRENGTH if source.mask is None else MASKED_STRENGTH
    return default if body.strength is None else float(body.strength)


def _refuse_transparency(body: ImageBody) -> None:
    if body.background == "transparent":
        raise InvalidRequest("background cannot be transparent", param="background", hint='send "auto" or "opaque"')


def _count(body: ImageBody, settings: Settings) -> int:
    n, most = body.n or 1, settings.limits.max_n
    if n > most:
        raise InvalidRequest(f"n is {n}, the limit is {most}", param="n", hint="send several requests")
    return n


def _check_one_picture(body: GenerationBody, raw: RawBytes | None) -> None:
    n = body.n or 1
    if n > 1 and body.stream:
        raise InvalidRequest(f"n is {n}, a stream carries one picture", param="n", hint="leave out n or stream")
    if n > 1 and raw:
        raise InvalidRequest(f"n is {n}, raw bytes are one picture", param="n", hint="send Accept: application/json")


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


def fields_without_effect(body: ImageBody, choice: Choice, request: ImageRequest) -> list[str]:
    """Known fields that were sent, but that another field makes meaningless."""
    unused = {
        "output_compression": body.output_compression is not None and request.output_format == "png",
        "negative_prompt": bool(body.negative_prompt) and not request.guided,
        "quality": choice.ignores(_NAMED.get(body.quality)),
        "strength": body.strength is not None and request.strength is None,
        **without_effect(body, request),
        **without_control(body, request),
    }
    return [name for name, ignored in unused.items() if ignored]
