"""`zimage generate`: one picture on the command line, by the same checks, queue and engine as a server's."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from PIL import Image
from rich.console import Console
from rich.status import Status
from ulid import ULID

from serve.api import checks
from serve.api.generation import ImageBody, parse
from serve.api.order import fields_without_effect, request_of
from serve.assets.store import AssetStore
from serve.errors import InvalidRequest, ZImageError
from serve.inputs import Brought, Source, control, source
from serve.messages import Canceled, Expired, Failed, ImageFormat, ImageRequest, Progress, Submission, Succeeded
from serve.presets.catalog import Catalog
from serve.presets.catalog import parse as parse_presets
from serve.presets.choice import Choice, Wrapped
from serve.settings import AssetSettings, Settings

FORMATS: dict[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One picture as it is asked for; what is None becomes the preset's or the model's default."""

    prompt: str
    output: Path
    size: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    image: Path | None = None
    mask: Path | None = None
    strength: float | None = None
    adapter: str | None = None
    adapter_scale: float | None = None
    controlnet: str | None = None
    control_image: Path | None = None
    controlnet_scale: float | None = None
    preset: str | None = None
    style: str | None = None

    def resolve(self, settings: Settings) -> Asked:
        """Raises InvalidRequest and its kinds."""
        checks.not_blank("prompt", self.prompt)
        if self.output.suffix.lower() not in FORMATS:
            raise InvalidRequest(f"cannot write {self.output}", hint=f"name it with one of {', '.join(FORMATS)}")
        if not self.output.absolute().parent.is_dir():
            raise InvalidRequest(f"there is no folder {self.output.parent}", hint=f"mkdir -p {self.output.parent}")
        body, _ = parse(ImageBody, self._fields())
        choice = Choice.of(self._catalog(settings), None, self.preset, self.style)
        prompt, brought = choice.wrap(self.prompt), Brought(self._source(settings), self._control(settings))
        request = request_of(body, choice, prompt, settings, FORMATS[self.output.suffix.lower()], brought)
        choice.check_words(self.prompt)
        return Asked(request, choice, prompt, brought, tuple(fields_without_effect(body, choice, request)))

    def _fields(self) -> dict[str, object]:
        """As the body of a request has them."""
        return {
            "prompt": self.prompt,
            "size": self.size,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": self.negative_prompt,
            "strength": self.strength,
            "adapter": self.adapter,
            "adapter_scale": self.adapter_scale,
            "controlnet": self.controlnet,
            "controlnet_conditioning_scale": self.controlnet_scale,
            "preset": self.preset,
            "style_preset": self.style,
        }

    def _catalog(self, settings: Settings) -> Catalog:
        """Read only where it is needed: this runs in any folder."""
        if settings.presets is None or (self.preset is None and self.style is None):
            return Catalog()
        text = _read("presets", settings.presets, "run it beside the file, or name a server's: --config").decode()
        return parse_presets(str(settings.presets), text, settings)

    def _source(self, settings: Settings) -> Source | None:
        if self.image is None:
            if self.mask is not None:
                raise InvalidRequest("mask is given without image", hint="name the picture that it belongs to: --image")
            return None
        mask = None if self.mask is None else _read("mask", self.mask)
        return source(_read("image", self.image), mask, settings.limits)

    def _control(self, settings: Settings) -> Image.Image | None:
        if self.control_image is None:
            return None
        return control(_read("control_image", self.control_image), settings.limits)


@dataclass(frozen=True, slots=True)
class Asked:
    """`ignored` names what has no effect; what was `brought` is not stored yet, and has no name in the request."""

    request: ImageRequest
    choice: Choice
    prompt: Wrapped
    brought: Brought
    ignored: tuple[str, ...]

    async def kept(self, assets: AssetStore) -> ImageRequest:
        """With its input pictures stored. Raises InvalidRequest where a mask leaves nothing to draw."""
        inputs = self.brought.fitted(self.request.width, self.request.height)
        for one in inputs.values():
            await assets.write_input(one.name, one.data)
        named: dict[str, Any] = {field: one.name for field, one in inputs.items()}
        return replace(self.request, **named)


def generate(wish: Wish, settings: Settings) -> None:
    """Writes the picture and says how it can be made again."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asked = wish.resolve(settings)
    console = Console(stderr=True)
    if asked.ignored:
        console.print(f"without effect here: {', '.join(asked.ignored)}")
    with (
        tempfile.TemporaryDirectory(prefix="zimage-") as scratch,
        console.status(f"loading {settings.model}") as status,
    ):
        alone: dict[str, object] = {
            "data": Path(scratch),
            "database": None,
            "assets": AssetSettings(),
            "warmup_sizes_px": (),
            "presets": None,
            "models": {},
        }
        local = settings.model_copy(update=alone)
        data, seconds = asyncio.run(_draw(asked, local, status))
    wish.output.write_bytes(data)
    request = asked.request
    made = f"{request.width}x{request.height}, {request.steps_taken} steps, seed {request.seed}"
    print(f"{wish.output}: {made}, drawn in {seconds:.1f} s")


async def _draw(asked: Asked, settings: Settings, status: Status) -> tuple[bytes, float]:
    """The file's bytes, and the seconds from submission to file."""
    from serve.local import open_service  # noqa: PLC0415 - imports torch: not before the request is known to be right

    async with open_service(settings) as service:
        tokens = checks.wrapped_text(asked.prompt, asked.choice, settings.limits, service.prompts)
        checks.text("negative_prompt", asked.request.negative_prompt, settings.limits, service.prompts)
        request = await asked.kept(service.assets)
        submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=tokens)
        began = time.perf_counter()
        await service.submit(submission)
        async for event in service.watch(submission.job_id):
            match event:
                case Progress(step=step, steps=steps):
                    status.update(f"step {step} of {steps}")
                case Succeeded(images=(image,)):
                    return (await service.assets.read(image.asset_id)).data, time.perf_counter() - began
                case Failed(error=error) | Expired(error=error):
                    raise ZImageError(error.message, hint=error.hint)
                case Canceled():
                    break
    raise ZImageError("the picture was not drawn: the service stopped")


def _read(what: str, path: Path, hint: str = "name a file that is there") -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{what}: cannot read {path}: {error.strerror}", hint=hint) from error
