"""One frozen Settings, validated before anything starts; `args` of config/serve.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "engine" / "tiny"

Pixels = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class QueueSettings(_Section):
    """Bounds of the one queue; what does not fit is refused at once with 503 and Retry-After."""

    max_depth: int = Field(1000, ge=1)
    max_depth_per_user: int = Field(200, ge=1)
    max_attempts: int = Field(3, ge=1, description="a job that lost its replica this often fails")


class SchedulerSettings(_Section):
    """Who takes the next denoising step on a replica."""

    policy: Literal["edf", "fifo"] = "edf"
    max_batch: int = Field(4, ge=1, le=64, description="images in one step; only where batching is measured to pay")
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


class TimeoutSettings(_Section):
    """Seconds."""

    request_s: float = Field(300, gt=0, description="a synchronous call that waits longer is cancelled, 503")
    heartbeat_s: float = Field(2, gt=0, description="a replica silent for five of these is no longer given work")


class Settings(_Section):
    """Everything that needs a restart to change."""

    model: str = Field(EMBEDDED, min_length=1, description="'embedded', a folder, or a hub id")
    served_model_name: str = Field("z-image-turbo", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    model_aliases: tuple[str, ...] = ("gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "dall-e-3", "dall-e-2")
    data: Path = Field(Path("data"), description="assets, jobs and the link secret")
    database: str | None = Field(
        None, pattern=r"^postgresql\+psycopg://", description="of jobs; default: SQLite in `data`"
    )
    jobs_ttl_s: int = Field(30 * 24 * 3600, ge=1, description="ended jobs are forgotten after this long")
    log_format: Literal["console", "json"] = "console"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one GPU replica's tensor work")
    default_size_px: Pixels | None = Field(None, description="side of a picture when none is asked for")
    max_side_px: Pixels | None = None
    default_steps: int = Field(8, ge=1, le=50)
    quality_steps: dict[Literal["low", "medium", "high", "xhigh", "max"], int] = Field(
        {"low": 4, "medium": 8, "high": 12, "xhigh": 16, "max": 20}, description="steps per OpenAI quality"
    )
    warmup_sizes_px: tuple[Pixels, ...] | None = Field(None, description="square sizes measured before ready")
    public_url: str | None = Field(None, pattern=r"^https?://[^\s]+[^/]$", description="base of links; default: Host")
    secret_key: str | None = Field(None, min_length=32, description="signs links; default: a secret in `data`")
    link_ttl_s: int = Field(3600, ge=1)
    queue: QueueSettings = QueueSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    limits: LimitSettings = LimitSettings()
    timeouts: TimeoutSettings = TimeoutSettings()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Settings:
        if self.default_px > self.cap_px:
            raise ValueError(f"default_size_px {self.default_px} is over max_side_px {self.cap_px}")
        return self

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

    @property
    def model_names(self) -> tuple[str, ...]:
        return (self.served_model_name, *self.model_aliases)
