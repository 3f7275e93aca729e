"""What the processes say to each other: small frozen dataclasses, nothing else crosses a boundary."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

from serve.errors import ZImageError
from serve.quota import Amount, Quota

ImageFormat = Literal["png", "jpeg", "webp"]
Priority = Literal["interactive", "standard", "batch"]
ANONYMOUS = "anonymous"  # the one user where there is no access control
PRIORITIES: tuple[Priority, ...] = ("interactive", "standard", "batch")
CacheUse = Literal["hit", "miss", "join"]


LATER = {"image", "mask", "strength", "adapter", "adapter_scale", "cfg_normalization", "cfg_truncation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What is drawn, fully resolved: the same request gives the same pictures.

    Image `i` of `n` is drawn with `seed + i`, so that any of them can be made again alone. It begins with noise, or
    with an input picture of this very size (`serve/inputs.py`) and as much noise as its `strength` says; where there is
    a `mask`, only its white parts are drawn. Both are names of inputs in the asset store. Guidance is bounded to
    `cfg_normalization` times the norm of the prompt's own velocity (0: not), and ends where 1 - sigma is over
    `cfg_truncation`.
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

    @property
    def steps_taken(self) -> int:
        """Of the schedule's `steps`, as diffusers counts: those for more noise than a picture gets are left out."""
        if self.strength is None:
            return self.steps
        return self.steps - int(max(self.steps - min(self.steps * self.strength, self.steps), 0))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all input pictures that it needs."""
        return tuple(name for name in (self.image, self.mask) if name is not None)

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


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A finished picture in the asset store, or one that was there and has been `deleted`."""

    asset_id: str
    seed: int
    width: int
    height: int
    format: ImageFormat
    bytes: int
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    queue_ms: float = 0.0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An error as it is stored with a job and shown to its owner."""

    status: int
    code: str
    type: str
    message: str
    param: str | None = None
    hint: str | None = None
    retry_after: int | None = None

    @classmethod
    def of(cls, error: ZImageError) -> ErrorInfo:
        return cls(
            status=error.status,
            code=error.code,
            type=error.type,
            message=error.message,
            param=error.param,
            hint=error.hint,
            retry_after=error.retry_after,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageError:
    """Why picture `image` of a job is missing, while others of it are there."""

    image: int
    seed: int
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. `seq` only grows within the job, also across restarts; `at` is Unix seconds."""

    job_id: str
    seq: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(Event):
    """Accepted, or moved in the queue: `position` is 1-based among `length` jobs that have not begun."""

    position: int
    length: int
    eta_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The first denoising step of the first image was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """`step` of `steps`, summed over all images of the job."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(Event):
    """A partial image, encoded in the requested format, waits in the asset store under `key`."""

    image: int
    index: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceling(Event):
    """A running job was told to stop and will at its next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal(Event):
    """After one of these nothing follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded(Terminal):
    """`cache` says whether its pictures were there, were drawn for it, or for an identical job that it joined.

    `errors` names the pictures that are missing; one at least is there.
    """

    images: tuple[StoredImage, ...]
    timings: Timings
    cache: CacheUse = "miss"
    errors: tuple[ImageError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Terminal):
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled(Terminal):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(Terminal):
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One image of one job, placed on one replica: the unit of queueing, batching and retrying.

    `deadline_in` is seconds from sending; past a `hard` deadline the image is dropped, past a soft one only ranked
    behind.
    """

    id: str
    job_id: str
    image: int
    asset_id: str
    request: ImageRequest
    prompt_tokens: int
    previews: int
    deadline_in: float
    hard_deadline: bool
    attempt: int
    replica_id: str
    user: str = "anonymous"
    request_id: str | None = None
    traceparent: str | None = None

    @property
    def seed(self) -> int:
        return self.request.seed + self.image


Series = tuple[str, tuple[str, ...]]  # a metric's name, and the values of its labels in the order of the catalog


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted since the tally before. `number` grows by one each: who takes one twice knows it."""

    number: int
    counts: dict[Series, float] = field(default_factory=dict)
    observed: dict[Series, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """Unix seconds, by the clock of the machine where it happened."""

    began: float
    ended: float


Stage = Literal["encode", "denoise", "decode", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A replica's one answer to a task: when its first step began (Unix seconds), and seconds spent on it.

    A batch counts for each of its members, but its one execution is shared among them: `executions` is this one's part.
    `encodings` is that of the text encoder's, 0 where it remembered the prompts.
    `tally` is what the replica has counted since its last one. `spans` say when each stage was at work, waiting within
    it included; one that did not happen, as the encoding of a remembered prompt, is not there.
    """

    image: StoredImage
    started_at: float
    encode_s: float
    denoise_s: float
    decode_s: float
    file_s: float = 0.0
    executions: float = 0.0
    encodings: float = 0.0
    tally: Tally | None = None
    spans: dict[Stage, Span] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStepped:
    """`step` steps of a task are done since `at` (Unix seconds); 0 says that its first step begins."""

    task_id: str
    step: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPreview:
    task_id: str
    index: int
    key: str


TaskReport = TaskStepped | TaskPreview


class Phase(StrEnum):
    """What a replica is doing on its way to serving; one that is lost, or about to be stopped, is on no way."""

    LOST = "device lost"
    STOPPING = "stopping"
    STARTING = "starting"
    LOADING = "loading weights"
    WARMING_UP = "warming up"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A device as its driver sees it, all processes on it together; None where the driver does not say (MIG).

    `utilization` is the share of time in which a kernel ran, 0 to 1.
    """

    uuid: str
    utilization: float | None
    power_w: float | None
    memory_used: int
    memory_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """A GPU replica as it registers with the Dispatcher and repeats in every heartbeat.

    Denoisers with the same `engine` draw the same pictures: it names weights, code, device and precision. Empty is
    unknown, and nothing is cached then. `warmup_s` is the time from the start of its process to ready.

    VRAM in bytes: `used` by tensors, `reserved` by the process, `total` that it may use; None on a CPU. `max_px` is the
    side of the largest square that fits into it, with guidance `max_guided_px`; None where memory is no limit.
    `adapters` are those that it serves, by name with the digest of their files; `adapters_held` are in its memory.
    """

    replica_id: str
    role: Literal["text_encoder", "denoiser"]
    phase: Phase
    fraction: float = 0.0
    device: str = ""
    engine: str = ""
    slots: int = 0
    step_times: dict[str, dict[str, float]] = field(default_factory=dict)
    vram_used: int | None = None
    vram_reserved: int | None = None
    vram_total: int | None = None
    gpu: GpuState | None = None
    warmup_s: float | None = None
    max_px: int | None = None
    max_guided_px: int | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    adapters_held: tuple[str, ...] = ()

    def takes(self, request: ImageRequest) -> bool:
        """Whether its memory can."""
        largest = self.max_guided_px if request.guided else self.max_px
        return largest is None or request.width * request.height <= largest**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """The whole service at one moment. `eta_seconds` estimates the wait of a job submitted now; `warnings` say to its
    operator what is wrong with it though it works."""

    ready: bool
    phase: str
    fraction: float
    queued: int
    running: int
    denoisers: int
    text_encoders: int
    eta_seconds: float | None
    uptime_s: float
    paused: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The webhook of one job: `waiting` for its end, `pending` from then on until `delivered` or `failed`.

    `last_status` is the HTTP status of the last answer, `last_error` why there was none or why it does not count;
    `next_attempt_at` is Unix time.
    """

    job_id: str
    url: str
    status: Literal["waiting", "pending", "delivered", "failed"] = "waiting"
    attempts: int = 0
    last_status: int | None = None
    last_error: str | None = None
    next_attempt_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica as it last reported, and how many images are placed on it."""

    state: ReplicaState
    placed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStats:
    """`waiting` by priority, `ended` by status since the Dispatcher started; the rest is of the last five minutes."""

    status: ServiceStatus
    waiting: dict[str, int]
    replicas: tuple[ReplicaView, ...]
    ended: dict[str, int]
    response_s: float | None
    images_per_minute: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as its owner sees it at one moment; times are Unix seconds.

    `seq` is that of its newest event: watching from there misses nothing. Position, length and eta only while queued.
    """

    id: str
    user: str
    status: JobStatus
    seq: int
    request: ImageRequest
    priority: Priority
    deadline_ms: int | None
    attempt: int
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    step: int = 0
    steps: int = 0
    position: int | None = None
    length: int | None = None
    eta_seconds: float | None = None
    images: tuple[StoredImage, ...] = ()
    timings: Timings | None = None
    cache: CacheUse = "miss"
    errors: tuple[ImageError, ...] = ()
    error: ErrorInfo | None = None
    parent_id: str | None = None
    webhook: Delivery | None = None
    preset: PresetUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Newest first, strictly older than job `before`; `text` is looked for in prompts, without case.

    With `input` only those that keep the input picture of this name.
    """

    user: str | None = None
    statuses: frozenset[JobStatus] = frozenset()
    text: str = ""
    input: str | None = None
    before: str | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetView:
    """A finished picture as its owner sees it; `request` is that of its whole job, `created_at` Unix seconds."""

    image: StoredImage
    job_id: str
    user: str
    created_at: float
    request: ImageRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetQuery:
    """Newest first, strictly after asset `after` in that order; `text` as in JobQuery. `ids` limits it to some."""

    user: str | None = None
    text: str = ""
    after: str | None = None
    ids: frozenset[str] | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What a wish to delete pictures came to; other users' are unknown."""

    deleted: tuple[str, ...]
    unknown: tuple[str, ...] = ()
