"""The whole service in this process, embedded model and all, behind a real server on a loopback port."""

import asyncio
import base64
import io
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI
from PIL import Image
from ulid import ULID

from serve.access.keys import ApiKey, create, pepper_of
from serve.access_settings import ROLES
from serve.api.app import create_app
from serve.jobs.dispatcher import Dispatcher
from serve.jobs.store import store_of
from serve.local import LocalService, open_service
from serve.messages import Generated, ImageRequest, Phase, ReplicaState, Submission, Task, TaskStepped
from serve.presets.hot import hot_presets
from serve.quota import Quota
from serve.settings import Settings

TYPES = {
    "authentication_error",
    "invalid_request_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
}
FOX = {"prompt": "a red fox on a yellow background", "seed": 1}

session_fixture = pytest_asyncio.fixture(scope="session", loop_scope="session")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/api/" in item.path.as_posix() and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture
def fox() -> dict[str, Any]:
    return dict(FOX)


@session_fixture
async def settings(tmp_path_factory) -> Settings:
    return Settings(
        data=tmp_path_factory.mktemp("data"),
        warmup_sizes_px=(128,),
        limits={"body_bytes": 300_000},
        timeouts={"heartbeat_s": 60},
        cache={"enabled": False},  # test_cache.py has a service of its own: all others draw what they ask for
    )


@session_fixture
async def service(settings) -> AsyncIterator[LocalService]:
    async with open_service(settings) as service:
        yield service


@session_fixture
async def app(service, settings) -> FastAPI:
    presets = hot_presets(settings)
    await presets.open()
    return create_app(service, service.assets, service.prompts, settings, presets=presets)


@session_fixture
async def client(app) -> AsyncIterator[httpx.AsyncClient]:
    """Without a server: what the application alone answers."""
    async with in_process(app) as client:
        yield client


@session_fixture
async def base_url(app) -> AsyncIterator[str]:
    async with served(app) as base_url:
        yield base_url


@session_fixture
async def http(base_url) -> AsyncIterator[httpx.AsyncClient]:
    """Through the server: for what is told while a job runs."""
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as http:
        yield http


@session_fixture
async def openai(base_url) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def in_process(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door", timeout=60)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    # asyncio sets TCP_NODELAY only where the socket names its protocol; without it every answer takes 40 ms more.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        # As config/serve.yaml has it; uvicorn's 5 s would close on whoever comes back after just so long.
        config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_keep_alive=90)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@dataclass
class Replicas:
    """A Backend with one slot that begins every task and ends none, or ends each with `error`."""

    error: Exception | None = None
    dispatcher: Dispatcher | None = None

    def encode(self, request: object) -> None:
        return None

    async def generate(self, task: Task, embeddings: object) -> Generated:
        if self.error is not None:
            raise self.error
        self.dispatcher.report([TaskStepped(task_id=task.id, step=0, at=time.time())])
        await asyncio.Event().wait()
        raise AssertionError


@dataclass
class Stuck:
    """A door whose jobs never end: the real queue over replicas that make no progress."""

    dispatcher: Dispatcher
    app: FastAPI

    async def until(self, **counts: int) -> None:
        """Waits until the queue counts this many jobs queued and running."""
        for _ in range(500):
            status = await self.dispatcher.status()
            if {name: getattr(status, name) for name in counts} == counts:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{status} instead of {counts}")


@pytest.fixture
def stuck(service, settings, tmp_path) -> Callable[..., AbstractAsyncContextManager[Stuck]]:
    @asynccontextmanager
    async def open_stuck(error: Exception | None = None, ready: bool = True, **changes: Any) -> AsyncIterator[Stuck]:
        changed = Settings(**settings.model_dump() | changes)
        replicas = Replicas(error)
        store = store_of(changed.model_copy(update={"data": tmp_path}))
        dispatcher = replicas.dispatcher = Dispatcher(changed, replicas, store, service.assets)
        await dispatcher.open()
        tokenizers = dict.fromkeys(changed.models, service.prompts)
        if ready:
            for role in ("text_encoder", "denoiser"):
                dispatcher.heartbeat(ReplicaState(replica_id=role, role=role, phase=Phase.READY, slots=1))
        try:
            yield Stuck(
                dispatcher, create_app(dispatcher, service.assets, service.prompts, changed, tokenizers=tokenizers)
            )
        finally:
            await dispatcher.close()

    return open_stuck


@dataclass
class Guarded(Stuck):
    """A door that asks who comes in, with a key for every kind of caller."""

    pepper: bytes
    keys: dict[str, str]

    @classmethod
    async def of(cls, stuck: Stuck, settings: Settings) -> "Guarded":
        guarded = cls(stuck.dispatcher, stuck.app, pepper_of(settings), {})
        for role in ROLES:
            await guarded.key(role, role=role)
        await guarded.key("ada")
        revoked = await guarded.key("revoked", user="ada")
        await stuck.dispatcher.revoke_api_key(revoked.id)
        await guarded.key("expired", user="ada", ttl_s=-1)
        return guarded

    async def key(self, name: str, role: str = "user", **how: Any) -> ApiKey:
        self.keys[name], key = create(self.pepper, name=name, role=role, **how)
        await self.dispatcher.add_api_key(key)
        return key

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"} if name in self.keys else {}

    async def job(self, user: str = "ada") -> str:
        """A job that never ends by itself."""
        request = ImageRequest(model="z-image-turbo", prompt="a secret fox", width=64, height=64, steps=1, seed=1)
        submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=5, user=user, quota=Quota())
        return await self.dispatcher.submit(submission)


@pytest.fixture
def guarded(stuck) -> Callable[..., AbstractAsyncContextManager[Guarded]]:
    @asynccontextmanager
    async def open_guarded(error: Exception | None = None, **access: Any) -> AsyncIterator[Guarded]:
        many = {"failed_sign_ins_per_minute": 10_000}  # test_attempts.py has a few
        async with stuck(error, access={"mode": "required"} | many | access) as service:
            yield await Guarded.of(service, service.app.state.door.settings)

    return open_guarded


@pytest.fixture
def door() -> Callable[[FastAPI], httpx.AsyncClient]:
    return in_process


@pytest.fixture
def serving() -> Callable[[FastAPI], AbstractAsyncContextManager[str]]:
    return served


@pytest.fixture
def picture() -> Callable[[bytes | str], Image.Image]:
    """Decodes a file, or one in base64, whole."""

    def decode(data: bytes | str) -> Image.Image:
        image = Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
        image.load()
        return image

    return decode


@pytest.fixture
def corners_are() -> Callable[[Image.Image, tuple[int, int, int]], bool]:
    """Judges a picture by its background, within 40 of 255 in every channel."""

    def judge(image: Image.Image, colour: tuple[int, int, int]) -> bool:
        right, bottom = image.width - 3, image.height - 3
        corners = [image.convert("RGB").getpixel(at) for at in ((2, 2), (right, 2), (2, bottom), (right, bottom))]
        return all(abs(a - b) <= 40 for corner in corners for a, b in zip(corner, colour, strict=True))

    return judge


@pytest.fixture
def refused() -> Callable[[httpx.Response, int, str], dict[str, Any]]:
    """The shape of every error of every route."""

    def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"] == "application/json"
        assert set(response.json()) == {"error"}
        error = response.json()["error"]
        assert set(error) - {"fragment"} == {"message", "type", "param", "code", "hint", "request_id"}
        assert error["code"] == code
        assert error["type"] in TYPES
        assert error["message"]
        assert error["request_id"] == response.headers["X-Request-ID"]
        assert status not in (429, 503) or int(response.headers["Retry-After"]) >= 1
        assert status != 401 or response.headers["WWW-Authenticate"].startswith("Bearer ")
        return error

    return check
