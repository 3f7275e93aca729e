"""What is said of a picture: in the JSON beside it, and inside its own file."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from serve.messages import ImageRequest

PACKAGE = "zimage-serve"


def describe(request: ImageRequest, image: int, *, job_id: str, user: str, weights: str) -> dict[str, Any]:
    """The metadata of image `image` of a job; its `request` draws this picture alone. `weights` names their origin."""
    return {
        "job_id": job_id,
        "image": image,
        "user": user,
        "prompt": request.prompt,
        "model": request.model,
        "weights": weights,
        "engine": f"{PACKAGE} {engine_version()}",
        "request": alone(request, image).said(),
    }


def alone(request: ImageRequest, image: int) -> ImageRequest:
    return replace(request, seed=request.seed + image, n=1)


def parameters(request: ImageRequest, image: int) -> str:
    """As many tools write and read them: the prompt, the negative prompt, and a line of settings.

    The same request has the same text, whoever asked and whenever, so the file's bytes follow from the request.
    """
    request = alone(request, image)
    settings = {
        "Steps": request.steps,
        "Sampler": "Euler",
        "CFG scale": f"{request.guidance:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": request.model,
    }
    if request.strength is not None:
        settings["Denoising strength"] = f"{request.strength:g}"
    if request.adapter is not None:
        settings["Adapter"] = f"{request.adapter}:{request.adapter_scale:g}"
    if request.controlnet is not None:
        settings["ControlNet"] = f"{request.controlnet}:{request.controlnet_conditioning_scale:g}"
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines).replace("\0", "")


@cache
def engine_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "from source"
