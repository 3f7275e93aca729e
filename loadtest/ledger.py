"""Which jobs the service has accepted, and what became of them: after a run, none may be lost."""

from __future__ import annotations

from dataclasses import dataclass, field

ENDED = ("succeeded", "failed", "canceled", "expired")


@dataclass
class Ledger:
    """A job is lost when it was accepted, and at last is unknown, has not ended, or its picture cannot be had."""

    open: dict[str, str] = field(default_factory=dict)  # id: the status that was seen last
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDED, 0))
    lost: dict[str, str] = field(default_factory=dict)  # id: why

    def accept(self, job_id: str) -> None:
        self.open[job_id] = "accepted"

    def see(self, job_id: str, status: str) -> None:
        """Of a job that was accepted; of one that has ended, nothing changes any more."""
        if job_id not in self.open:
            return
        if status in ENDED:
            del self.open[job_id]
            self.ended[status] += 1
        else:
            self.open[job_id] = status

    def lose(self, job_id: str, why: str) -> None:
        self.open.pop(job_id, None)
        self.lost[job_id] = why

    def close(self) -> None:
        """Whatever has not ended by now is lost."""
        for job_id, status in list(self.open.items()):
            self.lose(job_id, f"still {status}")

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {status}" for status, count in self.ended.items() if count)
        return f"accepted jobs: {ends or 'none ended'}, {len(self.lost)} lost"
