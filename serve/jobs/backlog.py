"""How much work waits for each role, and how much it does: what an autoscaler goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Ray's controller imports this module for Demand alone
    from serve.jobs.fleet import Fleet
    from serve.jobs.job import Job
    from serve.messages import Generated

SMOOTHING = 0.2  # weight of a new observation


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one role, at one moment.

    `backlog_s` is in GPU-seconds, 0 while what waits was never measured; `pieces` are what it consists of, each for
    one replica: images or prompts. `busy` of the `ready` replicas were at work, a mean since the last moment.
    """

    backlog_s: float = 0.0
    pieces: float = 0.0
    busy: float = 0.0
    ready: float = 0.0


class Backlog:
    """Told of every answer, asked about once a second; `jobs` are those that have pictures of their own to draw."""

    def __init__(self, fleet: Fleet, jobs: Callable[[], Iterable[Job]], clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._jobs = jobs
        self._clock = clock
        self._prompt_s = 0.0
        self._encoded_s = 0.0
        self._asked = clock()

    def generated(self, answer: Generated, prompts: int) -> None:
        """A picture came back; `prompts` were encoded for it, in `encodings` executions of `encode_s`."""
        encoded_s = answer.encode_s * answer.encodings
        if encoded_s > 0:
            self._encoded_s += encoded_s
            self._prompt_s += (SMOOTHING if self._prompt_s else 1.0) * (encoded_s / prompts - self._prompt_s)

    def measure(self) -> dict[str, Demand]:
        """By role. Jobs that are being stopped are no work; a prompt is, until a first step shows it to be encoded."""
        now = self._clock()
        elapsed_s, self._asked = now - self._asked, now
        encoded_s, self._encoded_s = self._encoded_s, 0.0
        wanted = [job for job in self._jobs() if job.wanted and (job.pending or job.placed)]
        unencoded = [job for job in wanted if job.embeddings is None or job.started_at is None]
        prompts = sum(2 if job.submission.request.guided else 1 for job in unencoded)
        return {
            "denoiser": Demand(
                backlog_s=sum(job.seconds_left() for job in wanted),
                pieces=sum(job.images_left for job in wanted),
                busy=self._fleet.busy("denoiser"),
                ready=self._fleet.ready("denoiser"),
            ),
            "text_encoder": Demand(
                backlog_s=prompts * self._prompt_s,
                pieces=prompts,
                busy=encoded_s / elapsed_s if elapsed_s > 0 else 0.0,
                ready=self._fleet.ready("text_encoder"),
            ),
        }


def told(role: str, demand: Demand) -> dict[str, float]:
    """As numbers by name, which is all that Ray Serve passes on."""
    return {f"{role}.{name}": value for name, value in asdict(demand).items()}


def understood(role: str, numbers: dict[str, float]) -> Demand | None:
    """The inverse of `told`; None where some number is missing."""
    names = {name: f"{role}.{name}" for name in Demand.__dataclass_fields__}
    if not numbers.keys() >= set(names.values()):
        return None
    return Demand(**{name: numbers[key] for name, key in names.items()})
