"""The deployments that are compared: how each is started, and how its users ask it for a picture."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
BASELINES_PYTHON = ROOT / ".venv-baselines/bin/python"
POLL_S = 0.25  # most pages with a progress bar ask once a second

First = Callable[[], None]  # called when the first byte of any answer is there


class Refused(Exception):
    """The user got an answer that is no picture."""


@dataclass(frozen=True, slots=True)
class Order:
    """A square picture of 8 steps."""

    prompt: str
    size_px: int
    seed: int


Ask = Callable[[httpx.AsyncClient, Order, First], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Start:
    """One process of a deployment."""

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    title: str
    processes: Callable[[int, Path], list[Start]]  # of a port (the next one is free, too) and an empty folder
    ask: Ask
    ours: bool = False


async def ask_blocking(client: httpx.AsyncClient, order: Order, first: First) -> bytes:
    body = {"prompt": order.prompt, "size": order.size_px, "seed": order.seed}
    return await _read(client, "POST", "/generate", first, json=body)


async def ask_gradio(client: httpx.AsyncClient, order: Order, first: First) -> bytes:
    """What Gradio's docs give for curl, and its own clients do: join the queue, watch the events, fetch the file."""
    call = "/gradio_api/call/generate"
    joined = json.loads(
        await _read(client, "POST", call, first, json={"data": [order.prompt, order.seed, order.size_px]})
    )
    event = ""
    async with client.stream("GET", f"{call}/{joined['event_id']}") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif event in ("complete", "error"):
                break
    if event != "complete":
        raise Refused(f"event {event}: {line[:200]}")
    return await _read(client, "GET", json.loads(line.removeprefix("data: "))[0]["url"])


async def ask_celery(client: httpx.AsyncClient, order: Order, first: First) -> bytes:
    body = {"prompt": order.prompt, "size": order.size_px, "seed": order.seed}
    task = json.loads(await _read(client, "POST", "/tasks", first, json=body))["id"]
    while True:
        await asyncio.sleep(POLL_S)
        state = json.loads(await _read(client, "GET", f"/tasks/{task}"))
        if state["status"] == "SUCCESS":
            return await _read(client, "GET", state["picture"])
        if state["status"] in ("FAILURE", "REVOKED"):
            raise Refused(state["status"])


async def ask_call(client: httpx.AsyncClient, order: Order, first: First) -> bytes:
    """OpenAI's route, with the picture itself as the answer."""
    return await _read(
        client, "POST", "/v1/images/generations", first, json=_body(order), headers={"Accept": "image/png"}
    )


async def ask_job(client: httpx.AsyncClient, order: Order, first: First) -> bytes:
    """What the page does: send a job, watch its events, fetch the picture."""
    job = json.loads(await _read(client, "POST", "/v1/jobs", first, json=_body(order) | {"priority": "interactive"}))
    if job["status"] != "succeeded":
        async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    job |= json.loads(line.removeprefix("data: ")).get("data", {})
    if job["status"] != "succeeded":
        raise Refused(f"{job['status']}: {job['error']}")
    return await _read(client, "GET", job["result"]["images"][0]["url"])


def _body(order: Order) -> dict[str, object]:
    return {"prompt": order.prompt, "size": f"{order.size_px}x{order.size_px}", "seed": order.seed}


async def _read(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    first: First = lambda: None,
    json: object = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    async with client.stream(method, path, json=json, headers=headers) as answer:
        first()
        content = await answer.aread()
    if not answer.is_success:
        raise Refused(f"{answer.status_code}: {content[:200].decode(errors='replace')}")
    return content


def _gradio(port: int, folder: Path) -> list[Start]:
    environment = (("GRADIO_ANALYTICS_ENABLED", "False"), ("GRADIO_TEMP_DIR", str(folder)))
    return [_python("loadtest.baselines.gradio_queue", "--port", str(port), environment=environment)]


def _flask(port: int, _: Path) -> list[Start]:
    how = ("--workers", "1", "--threads", "8", "--timeout", "120", "--bind", f"127.0.0.1:{port}")
    return [_python("gunicorn", *how, "loadtest.baselines.flask_blocking:app")]


def _celery(port: int, folder: Path) -> list[Start]:
    redis = port + 1
    environment = (("REDIS_URL", f"redis://127.0.0.1:{redis}/0"), ("PICTURES", str(folder)))
    application = "loadtest.baselines.celery_polling"
    worker = ("worker", "--pool", "solo", "--prefetch-multiplier", "1", "--loglevel", "warning")
    return [
        Start(("redis-server", "--bind", "127.0.0.1", "--port", str(redis), "--save", "", "--dir", str(folder))),
        _python("celery", "-A", f"{application}:tasks", *worker, environment=environment),
        _uvicorn(f"{application}:app", port, environment),
    ]


def _cache(port: int, folder: Path) -> list[Start]:
    return [_uvicorn("loadtest.baselines.disk_cache:app", port, (("CACHE", str(folder)),))]


def _ours(port: int, folder: Path) -> list[Start]:
    where = ("--port", str(port), "--data", str(folder))
    return [Start((sys.executable, "-m", "deployments.run", "config/serve.yaml", *where))]


def _uvicorn(application: str, port: int, environment: tuple[tuple[str, str], ...]) -> Start:
    return _python("uvicorn", application, "--port", str(port), "--log-level", "warning", environment=environment)


def _python(module: str, *arguments: str, environment: tuple[tuple[str, str], ...] = ()) -> Start:
    return Start((str(BASELINES_PYTHON), "-m", module, *arguments), environment)


SUBJECTS = (
    Subject("gradio", "Gradio, its queue", _gradio, ask_gradio),
    Subject("flask", "Flask, blocking", _flask, ask_blocking),
    Subject("celery", "FastAPI, Celery, Redis", _celery, ask_celery),
    Subject("cache", "lru_cache, disk cache", _cache, ask_blocking),
    Subject("call", "ours, one call", _ours, ask_call, ours=True),
    Subject("job", "ours, job with events", _ours, ask_job, ours=True),
)
