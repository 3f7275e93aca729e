"""One frozen Settings, validated before anything starts; `args` of config/serve.yaml."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve.access_settings import AccessSettings
from serve.adapter_settings import Adapter, AdapterName
from serve.controlnet_settings import ControlNet, ControlNetName

EMBEDDED = "embedded"
SECRET_VARIABLE = "ZIMAGE_SECRET_KEY"
ROLES = ("text_encoder", "denoiser")
RESERVED_MODEL_NAMES = (*ROLES, "stats", ".", "..")
EMBEDDED_FOLDER = Path(__file__).parent / "engine" / "tiny"

Pixels = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
Origin = Annotated[str, Field(pattern=r"^https?://[^\s/]+$")]
Seconds = Annotated[float, Field(gt=0)]

WHSEC = re.compile(r"whsec_(?:[A-Za-z0-9+/]{4}){8,21}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def _webhook_secret(text: str) -> str:
    if not WHSEC.fullmatch(text):
        raise ValueError("not whsec_ and 24 to 64 bytes in base64; `zimage webhook-secret --new` makes one")
    return text


def _free_under_v2(name: str) -> str:
    """KServe's routes tell the whole from its parts, and from a route of their own, by the name alone."""
    if name in RESERVED_MODEL_NAMES:
        raise ValueError(f"{name!r} means something else under /v2; not {', '.join(RESERVED_MODEL_NAMES)}")
    return name


def _host_or_network(text: str) -> str:
    """An address, a CIDR, a name, or `*.` and a name."""
    if re.fullmatch(r"(\*\.)?([a-z0-9_-]+\.)*[a-z_-][a-z0-9_-]*", text, re.IGNORECASE):
        return text
    ip_network(text)
    return text


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$"), AfterValidator(_free_under_v2)]
WebhookSecret = Annotated[str, AfterValidator(_webhook_secret)]
AllowedHost = Annotated[str, AfterValidator(_host_or_network)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class QueueSettings(_Section):
    """Bounds of the one queue; what does not fit is refused at once with 503 and Retry-After."""

    max_depth: int = Field(1000, ge=1)
    max_depth_per_user: int = Field(200, ge=1)
    max_attempts: int = Field(3, ge=1, description="a job that lost its replica this often fails")


class CacheSettings(_Section):
    """Results that are asked for again; their files are the pictures of the jobs that drew them."""

    enabled: bool = Field(True, description="answer identical requests from finished pictures, and draw them once")
    shared: bool = Field(False, description="reuse pictures across users; else each user only gets his own")
    ttl_s: int = Field(7 * 24 * 3600, ge=1, description="pictures older than this are drawn again")
    max_bytes: int = Field(4 << 30, ge=0, description="of the pictures that are remembered, least recently used go")
    embedding_bytes: int = Field(256 << 20, ge=0, description="of prompt embeddings kept by a TextEncoder; 0: none")


class SchedulerSettings(_Section):
    """Who takes the next denoising step on a replica."""

    policy: Literal["edf", "fifo", "static", "round_robin"] = "edf"
    max_batch: int = Field(4, ge=1, le=64, description="images in one step; only where batching is measured to pay")
    split_step_ms: float = Field(150, ge=0, description="longer steps are split so that others may pass; 0: never")
    decode_batch: int = Field(4, ge=1, le=64, description="latents decoded together")
    encode_batch: int = Field(8, ge=1, le=64, description="prompts encoded together")

    @property
    def window(self) -> int:
        """Images that a replica holds at once: small, so that fairness is decided in the queue."""
        return max(4, 2 * self.max_batch)


class LimitSettings(_Section):
    """Checked before any work is done."""

    body_bytes: int = Field(1 << 20, ge=1024)
    json_depth: int = Field(32, ge=4)
    prompt_characters: int = Field(32_000, ge=1)
    prompt_tokens: int = Field(512, ge=32, le=512, description="the model's own limit, chat template included")
    max_steps: int = Field(50, ge=1, le=50)
    max_n: int = Field(10, ge=1, le=10)
    image_bytes: int = Field(20 << 20, ge=1024, description="of an input picture's file; a mask may have as many")
    image_pixels: int = Field(50_000_000, ge=4096, description="of an input picture, checked before it is decoded")


OF_ALL_MODELS = {"body_bytes", "json_depth", "image_bytes", "image_pixels"}  # read before the model is known


class AutoscalingSettings(_Section):
    """How fast TextEncoders and Denoisers follow the work, where the config gives them an `autoscaling_config`."""

    drain_s: float = Field(30, gt=0, description="replicas are added until the backlog is worked off within this time")
    quiet_s: float = Field(300, gt=0, description="replicas that were not wanted for this long are given up")


class TimeoutSettings(_Section):
    """Seconds."""

    request_s: float = Field(300, gt=0, description="a synchronous call that waits longer is cancelled, 503")
    body_s: float = Field(30, gt=0, description="a request's body that takes longer to arrive is answered with 408")
    heartbeat_s: float = Field(2, gt=0, description="a replica silent for five of these is no longer given work")


class RetentionSettings(_Section):
    """Which pictures are removed by themselves, oldest first; a running job's never are."""

    max_age_s: int | None = Field(None, ge=1)
    max_bytes: int | None = Field(None, ge=1, description="of all users' pictures, thumbnails not counted")


class S3Settings(_Section):
    """Credentials come from the environment or the instance, never from here."""

    bucket: str | None = Field(None, min_length=1)
    prefix: str = Field("", pattern=r"^[^/\s]?([^\s]*[^/\s])?$", description="of all keys, without slashes at its ends")
    endpoint: str | None = Field(None, pattern=r"^https?://[^\s]+[^/]$", description="default: Amazon's")
    region: str | None = None
    virtual_hosted: bool = Field(False, description="the bucket is in the host name instead of the path")


class AssetSettings(_Section):
    """Where finished pictures are kept, and for how long."""

    store: Literal["local", "s3"] = "local"
    s3: S3Settings = S3Settings()
    retention: RetentionSettings = RetentionSettings()
    embed_parameters: bool = Field(True, description="prompt, seed and so on inside the picture's file")

    @model_validator(mode="after")
    def _bucket_is_named(self) -> AssetSettings:
        if self.store == "s3" and self.s3.bucket is None:
            raise ValueError("store: s3 needs s3.bucket")
        if self.store == "local" and self.s3 != S3Settings():
            raise ValueError("s3 is configured, but store is local; set store: s3")
        return self


class WebhookSettings(_Section):
    """Calls to the `webhook_url` of jobs that have ended."""

    secret: WebhookSecret | None = Field(None, description="signs them; default: from `secret_key`, or one in `data`")
    previous_secret: WebhookSecret | None = Field(None, description="signs them, too, while receivers change over")
    allow: tuple[AllowedHost, ...] = Field((), description="names and CIDRs of the own network that may be called")
    allow_http: bool = Field(False, description="plain http to the internet, too")
    retry_s: tuple[Seconds, ...] = Field(
        (10, 40, 160, 640, 2560, 10240, 40960), max_length=30, description="a retry waits up to so long, at random"
    )
    timeout_s: float = Field(15, gt=0, description="for one attempt, from DNS to the answer's status")
    concurrency: int = Field(64, ge=1)
    concurrency_per_host: int = Field(4, ge=1)


class TracingSettings(_Section):
    """OpenTelemetry; needs the extra `tracing`."""

    endpoint: str | None = Field(
        None, pattern=r"^https?://[^\s]+$", description="OTLP over HTTP, such as http://localhost:4318; default: off"
    )
    service_name: str = Field("zimage", min_length=1)


class ModelSettings(_Section):
    """What a model is, and how it is served: of the first one in the settings themselves, of others under `models`."""

    model: str = Field(EMBEDDED, min_length=1, description="'embedded', a folder, or a hub id")
    model_aliases: tuple[str, ...] = Field((), description="other names that clients may send for it")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    text_encoder_device: Literal["auto", "cpu", "cuda"] = Field("auto", description="of prompts; auto: as `device`")
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    vram_limit: ByteSize | None = Field(None, ge=1 << 20, description="of the GPU's memory, for one Denoiser: '24GB'")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one GPU replica's tensor work")
    default_size_px: Pixels | None = Field(None, description="side of a picture when none is asked for")
    max_side_px: Pixels | None = None
    default_steps: int = Field(8, ge=1, le=50)
    default_guidance: float = Field(0.0, ge=0, le=20, description="of requests that ask for none")
    default_cfg_normalization: float = Field(0.0, ge=0, le=10, description="of guided requests that ask for none")
    quality_steps: dict[Literal["low", "medium", "high", "xhigh", "max"], int] = Field(
        {"low": 4, "medium": 8, "high": 12, "xhigh": 16, "max": 20}, description="steps per OpenAI quality"
    )
    warmup_sizes_px: tuple[Pixels, ...] | None = Field(None, description="square sizes measured before ready")
    adapters: dict[AdapterName, Adapter] = Field(
        {}, description="LoRAs by name: a file, a folder or a hub id, or {weights, file, scale, preload}"
    )
    adapter_bytes: ByteSize = Field(
        ByteSize(2 << 30), ge=1 << 20, description="of adapters kept in a Denoiser's memory, least recently used go"
    )
    controlnets: dict[ControlNetName, ControlNet] = Field(
        {}, description="ControlNets by name: a file, a folder or a hub id, or {weights, file, scale, masks, preload}"
    )
    controlnet_bytes: ByteSize = Field(
        ByteSize(8 << 30), ge=1 << 20, description="of ControlNets kept in a Denoiser's memory, least recently used go"
    )
    queue: QueueSettings = QueueSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    limits: LimitSettings = LimitSettings()

    @property
    def embedded(self) -> bool:
        return self.model == EMBEDDED

    @property
    def default_px(self) -> int:
        return self.default_size_px or (128 if self.embedded else 1024)

    @property
    def cap_px(self) -> int:
        return self.max_side_px or (256 if self.embedded else 2048)

    @property
    def warmup_px(self) -> tuple[int, ...]:
        if self.warmup_sizes_px is not None:
            return self.warmup_sizes_px
        return tuple(sorted({self.default_px // 2, self.default_px, self.cap_px}))

    def differing_from(self, other: ModelSettings) -> dict[str, Any]:
        """The fields that are given here, sections filled up with those of the `other` one.

        Its names are its own, and so are adapters and ControlNets, which belong to weights.
        """
        fields: dict[str, Any] = {"model_aliases": (), "adapters": {}, "controlnets": {}}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if isinstance(value, _Section):
                value = getattr(other, name).model_copy(
                    update={key: getattr(value, key) for key in value.model_fields_set}
                )
            fields[name] = value
        return fields


class Settings(ModelSettings):
    """Everything that needs a restart to change."""

    served_model_name: ModelName = "z-image-turbo"
    model_aliases: tuple[str, ...] = ("gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "dall-e-3", "dall-e-2")
    data: Path = Field(Path("data"), description="assets, jobs and the link secret")
    shared_data: bool = Field(False, description="every node sees the same `data` folder, such as NFS")
    database: str | None = Field(
        None, pattern=r"^postgresql\+psycopg://", description="of jobs; default: SQLite in `data`"
    )
    jobs_ttl_s: int = Field(30 * 24 * 3600, ge=1, description="ended jobs are forgotten after this long")
    log_format: Literal["console", "json"] = "console"
    log_prompts: bool = Field(False, description="prompts in the log lines of jobs")
    public_url: str | None = Field(None, pattern=r"^https?://[^\s]+[^/]$", description="base of links; default: Host")
    secret_key: str | None = Field(None, min_length=32, description="signs links; default: a secret in `data`")
    presets: Path | None = Field(Path("config/presets.yaml"), description="hot: presets and styles; null: none")
    link_ttl_s: int = Field(3600, ge=1)
    allowed_origins: tuple[Origin, ...] = Field((), description="other sites whose pages may open WebSockets")
    cache: CacheSettings = CacheSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    assets: AssetSettings = AssetSettings()
    webhooks: WebhookSettings = WebhookSettings()
    access: AccessSettings = AccessSettings()
    tracing: TracingSettings = TracingSettings()
    models: dict[ModelName, ModelSettings] = Field(
        {}, description="further models by name: what differs from the first"
    )

    @field_validator("models")
    @classmethod
    def _models_fit(cls, models: dict[str, ModelSettings], info: ValidationInfo) -> dict[str, ModelSettings]:
        """Beside what was checked before: the last field, so that a config's error has its line."""
        if not models or len(info.data) < len(cls.model_fields) - 1:  # what is wrong there is told already
            return models
        whole = cls.model_construct(**info.data, models=models)
        owners: dict[str, str] = {}
        if whole.served_model_name in models:
            raise ValueError(f"{whole.served_model_name!r} is the first model's name (served_model_name)")
        for model in whole.served:
            own = whole.of(model)
            if own.default_px > own.cap_px:
                raise ValueError(f"{model}: default_size_px {own.default_px} is over max_side_px {own.cap_px}")
            for name in (*own.model_names, *whole.parts_of(model).values()):
                if owners.setdefault(name, model) != model:
                    raise ValueError(f"{model}: {name!r} is a name of {owners[name]} already; choose another one")
        for model, differs in models.items():
            if shared := differs.limits.model_fields_set & OF_ALL_MODELS:
                raise ValueError(
                    f"{model}: limits.{min(shared)} is one for all models; set it in the service's own limits"
                )
        return models

    @model_validator(mode="before")
    @classmethod
    def _secret_of_the_environment(cls, given: Any) -> Any:
        """On a cluster secrets are no part of a file."""
        secret = os.environ.get(SECRET_VARIABLE)
        return {"secret_key": secret} | given if secret and isinstance(given, dict) else given

    @model_validator(mode="after")
    def _sizes_fit(self) -> Settings:
        if self.default_px > self.cap_px:
            raise ValueError(f"default_size_px {self.default_px} is over max_side_px {self.cap_px}")
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """Of the first model."""
        return (self.served_model_name, *self.model_aliases)

    @property
    def served(self) -> tuple[str, ...]:
        """The names of all models, the first one's first."""
        return (self.served_model_name, *self.models)

    def of(self, model: str) -> Settings:
        """As if the model of this name were the only one. Raises KeyError."""
        if model == self.served_model_name:
            return self.model_copy(update={"models": {}}) if self.models else self
        changes = self.models[model].differing_from(self)
        return self.model_copy(update={**changes, "served_model_name": model, "models": {}})

    def tail(self, model: str) -> str:
        """What the names of a model's deployments and parts end with: nothing, of the first."""
        return "" if model == self.served_model_name else f"-{model}"

    def parts_of(self, model: str) -> dict[str, str]:
        """The names of its parts under /v2, by role."""
        return {role: role + self.tail(model) for role in ROLES}
