"""Between the Dispatcher and the replicas that draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from serve.messages.outcomes import StoredImage
from serve.messages.requests import ImageRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One image of one job, placed on one replica: the unit of queueing, batching and retrying.

    `deadline_in` is seconds from sending; past a `hard` deadline the image is dropped, past a soft one only ranked
    behind.
    """

    id: str
    job_id: str
    image: int
    asset_id: str
    request: ImageRequest
    prompt_tokens: int
    previews: int
    deadline_in: float
    hard_deadline: bool
    attempt: int
    replica_id: str
    user: str = "anonymous"
    request_id: str | None = None
    traceparent: str | None = None

    @property
    def seed(self) -> int:
        return self.request.seed + self.image


Series = tuple[str, tuple[str, ...]]  # a metric's name, and the values of its labels in the order of the catalog


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted since the tally before. `number` grows by one each: who takes one twice knows it."""

    number: int
    counts: dict[Series, float] = field(default_factory=dict)
    observed: dict[Series, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """Unix seconds, by the clock of the machine where it happened."""

    began: float
    ended: float


Stage = Literal["encode", "denoise", "decode", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A replica's one answer to a task: when its first step began (Unix seconds), and seconds spent on it.

    A batch counts for each of its members, but its one execution is shared among them: `executions` is this one's part.
    `encodings` is that of the text encoder's, 0 where it remembered the prompts.
    `tally` is what the replica has counted since its last one. `spans` say when each stage was at work, waiting within
    it included; one that did not happen, as the encoding of a remembered prompt, is not there.
    """

    image: StoredImage
    started_at: float
    encode_s: float
    denoise_s: float
    decode_s: float
    file_s: float = 0.0
    executions: float = 0.0
    encodings: float = 0.0
    tally: Tally | None = None
    spans: dict[Stage, Span] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStepped:
    """`step` steps of a task are done since `at` (Unix seconds); 0 says that its first step begins."""

    task_id: str
    step: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPreview:
    task_id: str
    index: int
    key: str


TaskReport = TaskStepped | TaskPreview
