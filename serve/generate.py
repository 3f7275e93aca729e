"""`zimage generate`: one picture on the command line, by the same queue and engine that a server runs."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.console import Console
from rich.status import Status
from ulid import ULID

from serve.api import checks
from serve.errors import InvalidRequest, ZImageError
from serve.messages import Canceled, Expired, Failed, ImageFormat, ImageRequest, Progress, Submission, Succeeded
from serve.settings import AssetSettings, Settings

FORMATS: dict[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One picture as it is asked for; what is None becomes the model's default."""

    prompt: str
    size: str | None
    seed: int | None
    steps: int | None
    guidance: float
    negative_prompt: str
    output: Path

    def resolve(self, settings: Settings) -> ImageRequest:
        """Raises InvalidRequest."""
        checks.not_blank("prompt", self.prompt)
        width, height = checks.size(self.size, settings)
        if self.output.suffix.lower() not in FORMATS:
            raise InvalidRequest(f"cannot write {self.output}", hint=f"name it with one of {', '.join(FORMATS)}")
        if not self.output.absolute().parent.is_dir():
            raise InvalidRequest(f"there is no folder {self.output.parent}", hint=f"mkdir -p {self.output.parent}")
        return ImageRequest(
            model=settings.served_model_name,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt if self.guidance else "",
            width=width,
            height=height,
            steps=checks.steps(self.steps, None, settings),
            guidance=self.guidance,
            seed=checks.seed(self.seed, 1),
            output_format=FORMATS[self.output.suffix.lower()],
        )


def generate(wish: Wish, settings: Settings) -> None:
    """Writes the picture and says how it can be made again."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    request = wish.resolve(settings)
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="zimage-") as scratch,
        console.status(f"loading {settings.model}") as status,
    ):
        alone = {
            "data": Path(scratch),
            "database": None,
            "assets": AssetSettings(),
            "warmup_sizes_px": (),
            "presets": None,
        }
        local = settings.model_copy(update=alone)
        data, seconds = asyncio.run(_draw(request, local, status))
    wish.output.write_bytes(data)
    made = f"{request.width}x{request.height}, {request.steps} steps, seed {request.seed}"
    print(f"{wish.output}: {made}, drawn in {seconds:.1f} s")


async def _draw(request: ImageRequest, settings: Settings, status: Status) -> tuple[bytes, float]:
    """The file's bytes, and the seconds from submission to file."""
    from serve.local import open_service  # noqa: PLC0415 - imports torch: not before the request is known to be right

    async with open_service(settings) as service:
        tokens = checks.text("prompt", request.prompt, settings.limits, service.prompts)
        checks.text("negative_prompt", request.negative_prompt, settings.limits, service.prompts)
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
