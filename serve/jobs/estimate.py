"""When will it be done? Work ahead in measured GPU-seconds over live replicas, plus one's own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from serve.messages import Submission
from serve.step_times import StepTimes, sequence_tokens


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of a job: how many images, and GPU-seconds for all of them; 0 when nothing was measured yet."""

    images: int
    seconds: float


def solo_seconds(submission: Submission, times: StepTimes) -> float:
    """GPU-seconds of all its images, alone on one device; 0 when nothing was measured yet."""
    request = submission.request
    return request.n * times.image_seconds(
        steps=request.steps_taken,
        tokens=sequence_tokens(request.image_tokens, submission.prompt_tokens),
        rows=2 if request.guided else 1,
        pixels=request.width * request.height,
        encoded=sum(name is not None for name in (request.image, request.control_image)),
        controlnet=request.controlnet,
    )


def seconds_until_done(ahead: Iterable[float], own: float, replicas: int, starts_in: float = 0.0) -> float | None:
    """None when no replica is alive: unknown is not zero. They begin to draw in `starts_in` seconds."""
    if replicas == 0:
        return None
    return starts_in + sum(ahead) / replicas + own


def etas(
    begun: Iterable[Work], waiting: Iterable[Work], replicas: int, starts_in: float = 0.0
) -> Iterator[float | None]:
    """Seconds until each of the jobs that wait, in serving order, is done; None where that is unknown.

    It is unknown while no replica is alive, and for a job that has unmeasured work, or follows some.
    """
    ahead, known = 0.0, replicas > 0
    for work in begun:
        ahead += work.seconds
    for work in waiting:
        known = known and work.seconds > 0
        yield seconds_until_done([ahead], spread_seconds(work, replicas), replicas, starts_in) if known else None
        ahead += work.seconds


def spread_seconds(work: Work, replicas: int) -> float:
    """Of a job that has all replicas to itself: each draws one of its images at a time."""
    rounds = -(-work.images // max(1, replicas))
    return rounds * work.seconds / max(1, work.images)
