"""`zimage top`: a running service at a glance, from what its API tells."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx2
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serve.errors import Unavailable

UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Frame:
    """`jobs` is None where the caller may not see everybody's."""

    stats: dict[str, Any]
    jobs: list[dict[str, Any]] | None


def look(client: httpx2.Client, rows: int) -> Frame:
    """Raises Unavailable."""
    stats = _get(client, "/v1/stats")
    try:
        jobs = _get(client, f"/v1/admin/queue?limit={rows}")["data"]
    except PermissionError:
        jobs = None
    return Frame(stats, jobs)


def _get(client: httpx2.Client, path: str) -> dict[str, Any]:
    hint = "is the service running there? zimage top --url http://HOST:PORT"
    try:
        response = client.get(path)
    except httpx2.TransportError as error:
        raise Unavailable(f"{client.base_url} does not answer: {error}", hint=hint) from error
    if response.status_code in (401, 403) and path != "/v1/stats":
        raise PermissionError
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.status_code != 200 or not isinstance(answer, dict):
        raise Unavailable(f"{client.base_url}{path.removeprefix('/')} answered {response.status_code}", hint=hint)
    return answer


def top(url: str, key: str | None, *, every_s: float, rows: int, once: bool, as_json: bool) -> None:
    """Draws until it is interrupted, or once."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=url, headers=headers, timeout=10) as client:
        frame = look(client, rows)
        if as_json:
            print(json.dumps({"stats": frame.stats, "jobs": frame.jobs}, indent=1))
        elif once:
            Console().print(render(frame, url))
        else:
            _follow(client, frame, url, every_s, rows)


def _follow(client: httpx2.Client, frame: Frame, url: str, every_s: float, rows: int) -> None:
    with Live(render(frame, url), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every_s)
            try:
                live.update(render(look(client, rows), url), refresh=True)
            except Unavailable as error:
                live.update(Text(f"{error.message}; trying again", style="red"), refresh=True)


def render(frame: Frame, url: str) -> RenderableType:
    parts: list[RenderableType] = [_head(frame.stats, url), _replicas(frame.stats["replicas"])]
    parts += [Text(f"{name}: {file['refused']['message']}", "red") for name, file in _refused(frame.stats)]
    parts.append(Text("the queue is an administrator's to see") if frame.jobs is None else _jobs(frame.jobs))
    return Group(*parts)


def _refused(stats: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, file) for name, file in stats["config"].items() if file["refused"]]


def _head(stats: dict[str, Any], url: str) -> RenderableType:
    state = "paused" if stats["paused"] else "ready" if stats["ready"] else "starting"
    style = {"ready": "bold green", "paused": "bold yellow", "starting": "bold red"}[state]
    waiting = ", ".join(f"{count} {name}" for name, count in stats["queue_by_priority"].items() if count)
    ended = ", ".join(f"{count} {name}" for name, count in stats["jobs_ended"].items())
    response = stats["avg_response_time_ms"]
    grid = Table.grid(padding=(0, 3))
    grid.add_row(Text(state, style), url, f"up {stats['uptime_minutes']:.0f} min")
    grid.add_row("queue", f"{stats['queue_length']} waiting" + (f" ({waiting})" if waiting else ""))
    grid.add_row("", f"{stats['active_requests']} running", f"wait {_seconds(stats['estimated_wait_seconds'])}")
    grid.add_row(
        "rate",
        f"{stats['images_per_minute']:.1f} images/min",
        f"mean response {_seconds(None if response is None else response / 1e3)}",
    )
    grid.add_row("ended", ended or "none")
    return grid


def _replicas(replicas: list[dict[str, Any]]) -> RenderableType:
    table = Table("replica", "role", "device", "state", "images", "GPU memory", box=None, title_justify="left")
    models = {replica["model"] for replica in replicas}
    for replica in replicas:
        used, total = replica["gpu_memory_used_gb"], replica["gpu_memory_total_gb"]
        phase, progress = replica["phase"], replica["progress"]
        table.add_row(
            replica["id"],
            replica["role"] if len(models) < 2 else f"{replica['model']} {replica['role']}",
            replica["device"] or UNKNOWN,
            phase if phase == "ready" or not progress else f"{phase} {progress:.0%}",
            UNKNOWN if replica["slots"] is None else f"{replica['images']}/{replica['slots']}",
            UNKNOWN if used is None else f"{used:.1f} of {total or 0:.1f} GB",
        )
    return table


def _jobs(jobs: list[dict[str, Any]]) -> RenderableType:
    table = Table("job", "user", "class", "state", "place", "ETA", "size", "progress", box=None)
    for job in jobs:
        queue, progress, request = job["queue"], job["progress"], job["request"]
        table.add_row(
            job["id"],
            job["user"],
            request["priority"],
            job["status"],
            UNKNOWN if queue is None else f"{queue['position']}/{queue['length']}",
            _seconds(None if queue is None else queue["eta_seconds"]),
            f"{request['n']} × {request['size']}" if request["n"] > 1 else request["size"],
            f"{progress['step']}/{progress['steps']}",
        )
    return table


def _seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f} s"
