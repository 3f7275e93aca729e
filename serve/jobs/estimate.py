"""When will it be done? Work ahead in measured GPU-seconds over live replicas, plus one's own. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from serve.messages import Submission
from serve.step_times import StepTimes, sequence_tokens


def solo_seconds(submission: Submission, times: StepTimes) -> float:
    """GPU-seconds of all its images, alone on one device; 0 when nothing was measured yet."""
    request = submission.request
    return request.n * times.image_seconds(
        steps=request.steps,
        tokens=sequence_tokens(request.image_tokens, submission.prompt_tokens),
        rows=2 if request.guided else 1,
        pixels=request.width * request.height,
    )


def seconds_until_done(ahead: Iterable[float], own: float, replicas: int) -> float | None:
    """None when no replica is alive: unknown is not zero."""
    if replicas == 0:
        return None
    return sum(ahead) / replicas + own
