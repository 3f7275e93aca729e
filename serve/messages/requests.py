"""What is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from serve.quota import Amount, Quota

ImageFormat = Literal["png", "jpeg", "webp"]
Priority = Literal["interactive", "standard", "batch"]
ANONYMOUS = "anonymous"  # the one user where there is no access control
PRIORITIES: tuple[Priority, ...] = ("interactive", "standard", "batch")
LATER = {
    "image", "mask", "strength", "adapter", "adapter_scale", "cfg_normalization", "cfg_truncation", "controlnet",
    "control_image", "controlnet_conditioning_scale",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What is drawn, fully resolved: the same request gives the same pictures.

    Image `i` of `n` is drawn with `seed + i`, so that any of them can be made again alone. It begins with noise, or
    with an input picture of this very size (`serve/inputs.py`) and as much noise as its `strength` says; where there is
    a `mask`, only its white parts are drawn. Both are names of inputs in the asset store. Guidance is bounded to
    `cfg_normalization` times the norm of the prompt's own velocity (0: not), and ends where 1 - sigma is over
    `cfg_truncation`. A `controlnet` reads the `control_image`, an input too, and what it makes of it is added so many
    times. With a mask it reads the input picture as well, and the picture begins with noise.
    """

    model: str
    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    steps: int
    guidance: float = 0.0
    seed: int
    n: int = 1
    output_format: ImageFormat = "png"
    output_compression: int | None = None
    deterministic: bool = False
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    adapter: str | None = None
    adapter_scale: float = 1.0
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0
    controlnet: str | None = None
    control_image: str | None = None
    controlnet_conditioning_scale: float = 1.0

    @property
    def steps_taken(self) -> int:
        """Of the schedule's `steps`, as diffusers counts: those for more noise than a picture gets are left out."""
        if self.strength is None:
            return self.steps
        return self.steps - int(max(self.steps - min(self.steps * self.strength, self.steps), 0))

    @property
    def control_inpaints(self) -> bool:
        return self.controlnet is not None and self.mask is not None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all input pictures that it needs, each once: it may follow the one that it begins with."""
        names = dict.fromkeys((self.image, self.mask, self.control_image))
        return tuple(name for name in names if name is not None)

    def said(self) -> dict[str, Any]:
        """All fields, without those that came later where they say nothing: hashes from before them stay good."""
        later = {it.name: it.default for it in fields(self) if it.name in LATER}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    @property
    def guided(self) -> bool:
        """Classifier-free guidance doubles the rows of a step."""
        return self.guidance > 0

    @property
    def image_tokens(self) -> int:
        return (self.width // 16) * (self.height // 16)

    @property
    def amount(self) -> Amount:
        """What it takes from a quota."""
        rows = self.n * (2 if self.guided else 1)
        return Amount(images=self.n, pixel_steps=self.width * self.height * self.steps_taken * rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetUse:
    """Where a request comes from that a preset or a style has filled up: what was asked for, before they did.

    `version` is the hash of the presets' file; `explicit` names the fields that the caller had sent for itself.
    """

    preset: str | None
    style_preset: str | None
    version: str
    prompt: str
    explicit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One request that is several jobs: all of them name it, and how many they are."""

    id: str
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request on its way into the queue. `job_id` is a ULID minted by the caller: submitting it twice is one job.

    `seeded` says that the caller chose the seed: a picture of a random one is never answered from the cache, nor kept
    in it. With `cache="skip"` a result is neither looked up nor shared while it is drawn, but kept for others. `quota`
    is the user's at this moment; None where access is open, and nothing is counted. `request_id` is that of the HTTP
    request that it came with, `traceparent` the header of this name, as it was sent.
    """

    job_id: str
    request: ImageRequest
    prompt_tokens: int
    user: str = ANONYMOUS
    priority: Priority = "interactive"
    deadline_ms: int | None = None
    previews: int = 0
    seeded: bool = False
    cache: Literal["auto", "skip"] = "auto"
    idempotency_key: str | None = None
    body_sha256: str | None = None
    parent_id: str | None = None
    webhook_url: str | None = None
    quota: Quota | None = None
    preset: PresetUse | None = None
    batch: Batch | None = None
    request_id: str | None = None
    traceparent: str | None = None

    @property
    def own_prompt(self) -> str:
        """As the user wrote it, without the words of a preset."""
        return self.preset.prompt if self.preset else self.request.prompt
