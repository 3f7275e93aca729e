"""Every hyperparameter and what it means; `Config()` made the measured model, `SMOKE` is for tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A picture size: how many scenes are cached, the share of steps, and the part of a full batch that it can bear."""

    width: int
    height: int
    scenes: int
    share: float
    batch: float = 1.0

    @property
    def tokens(self) -> int:
        """Patches of the transformer: the VAE divides by 8, a patch by 2."""
        return (self.width // 16) * (self.height // 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Captions padded to `tokens`: how many different ones a scene gets, and the share of steps that use them."""

    tokens: int
    variants: int
    share: float
    batch: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The captions that byte-pair merges are learned from; changing any of these changes every token."""

    vocabulary: int = 2560
    short_captions: int = 60_000
    long_captions: int = 3_000
    name_repeats: int = 8
    chat_repeats: int = 5_000
    seed: int = 123


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """AdamW on L1 + MSE + gradient L1 at three scales + KL; the learning rate falls linearly to zero."""

    time_share: float = 0.15  # of what is left after compiling
    max_steps: int | None = None
    batch: int = 96
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    gradient_weight: float = 0.7
    kl_weight: float = (
        5e-3  # per latent element; posterior deviation 0.17: the decoder forgives errors of the transformer
    )
    kl_warmup_steps: int = 500
    crop_every: int = 5  # every n-th batch is a 128 px crop of a 256 px canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Flow matching, transformer and text encoder together: Muon on the blocks' matrices, AdamW on the rest."""

    max_steps: int | None = None
    batch: int = 640
    muon_learning_rate: float = 3e-3
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.02
    adamw_learning_rate: float = 2e-3
    adamw_betas: tuple[float, float] = (0.9, 0.98)
    adamw_weight_decay: float = 1e-3
    clip_norm: float = 1.0  # of AdamW's gradients
    warmup: float = 0.03  # share of the time; then flat,
    decay_from: float = 0.35  # and from here linearly to zero
    empty_captions: float = 0.06  # replaced by "", so that guidance has something to guide away from
    shift: float = 3.0  # of the noise levels, as in the scheduler
    native_steps: int = 20  # the first ones use only the native canvas and short captions


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Pictures drawn for each check of checks.py, for the sheet, and at once."""

    scenes: int = 96
    objects: int = 300
    labels: int = 1000  # at most all there are
    aliases: int = 160
    pairs: int = 120
    counts: int = 48
    shapes: int = 96
    sheet: int = 16
    batch: int = 8


FULL_MINUTES = 25.0

CANVASES = (
    Canvas(width=128, height=128, scenes=393_216, share=0.80),
    Canvas(width=256, height=256, scenes=8192, share=0.05, batch=0.3125),
    Canvas(width=192, height=192, scenes=8192, share=0.04, batch=0.5),
    Canvas(width=64, height=64, scenes=8192, share=0.025),
    Canvas(width=96, height=96, scenes=6144, share=0.015),
    Canvas(width=160, height=160, scenes=6144, share=0.015, batch=0.625),
    Canvas(width=192, height=128, scenes=4096, share=0.015, batch=0.75),
    Canvas(width=128, height=192, scenes=4096, share=0.015, batch=0.75),
    Canvas(width=256, height=128, scenes=4096, share=0.0075, batch=0.625),
    Canvas(width=128, height=256, scenes=4096, share=0.0075, batch=0.625),
    Canvas(width=384, height=384, scenes=1024, share=0.005, batch=0.15),
    Canvas(width=512, height=512, scenes=1024, share=0.005, batch=0.09),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`minutes` is the wall clock from the start of the process to the printed table, compiling included."""

    minutes: float = FULL_MINUTES
    seed: int = 0
    evaluation_s: float = 45.0  # kept free at the end for export and evaluation
    workers: int = 13  # processes that draw scenes and write captions; 0: one thread
    compile: bool = True
    scenes_per_job: int = 2048
    canvases: tuple[Canvas, ...] = CANVASES  # the first one is native
    buckets: tuple[Bucket, ...] = (  # in the order of captions.Length
        Bucket(tokens=32, variants=2, share=0.88),
        Bucket(tokens=64, variants=1, share=0.09),
        Bucket(tokens=128, variants=1, share=0.03, batch=0.5),
    )
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(objects=240, labels=240, aliases=64, pairs=64, batch=64)
    )

    @property
    def seconds(self) -> float:
        return self.minutes * 60

    def for_minutes(self, minutes: float) -> Config:
        """A shorter run sees fewer scenes, so that caching them takes the same share of it."""
        scale = minutes / FULL_MINUTES
        canvases = tuple(replace(canvas, scenes=max(64, round(canvas.scenes * scale))) for canvas in self.canvases)
        return replace(self, minutes=minutes, canvases=canvases)


SMOKE = Config(
    minutes=1.0,
    evaluation_s=20.0,
    workers=0,
    compile=False,
    scenes_per_job=16,
    canvases=(
        Canvas(width=128, height=128, scenes=32, share=0.7),
        Canvas(width=96, height=64, scenes=16, share=0.3),
    ),
    tokenizer=TokenizerConfig(short_captions=1000, long_captions=50, name_repeats=2, chat_repeats=50),
    vae=VaeConfig(max_steps=5, batch=2, warmup_steps=2, kl_warmup_steps=5),
    transformer=TransformerConfig(max_steps=8, batch=4, native_steps=2),
    evaluation=EvaluationConfig(
        scenes=4, objects=4, labels=4, aliases=2, pairs=2, counts=2, shapes=2, sheet=2, batch=4
    ),
)
