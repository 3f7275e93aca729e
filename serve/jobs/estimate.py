"""When will it be done? Work ahead in measured GPU-seconds over live replicas, plus one's own. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from serve.messages import ImageRequest
from serve.step_times import StepTimes, sequence_tokens


def image_seconds(request: ImageRequest, prompt_tokens: int, times: StepTimes) -> float:
    """GPU-seconds of one image of the request, alone on the device; 0 when nothing was measured yet."""
    return times.image_seconds(
        steps=request.steps,
        tokens=sequence_tokens(request.image_tokens, prompt_tokens),
        rows=2 if request.guided else 1,
        pixels=request.width * request.height,
    )


def seconds_until_done(ahead: Iterable[float], own: float, replicas: int) -> float | None:
    """None when no replica is alive: unknown is not zero."""
    if replicas == 0:
        return None
    return sum(ahead) / replicas + own
