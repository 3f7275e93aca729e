"""The whole service in this process, embedded model and all, behind a real server on a loopback port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI

from serve.api.app import create_app
from serve.local import LocalService, open_service
from serve.settings import Settings


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/api" in item.path.as_posix():
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def settings(tmp_path_factory) -> Settings:
    return Settings(data=tmp_path_factory.mktemp("data"), warmup_sizes_px=(128,), limits={"body_bytes": 200_000})


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def service(settings) -> AsyncIterator[LocalService]:
    async with open_service(settings) as service:
        yield service


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def app(service, settings) -> FastAPI:
    return create_app(service, service.assets, service.prompts, settings)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(app) -> AsyncIterator[httpx.AsyncClient]:
    """Without a server: what the application alone answers."""
    async with in_process(app) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def base_url(app) -> AsyncIterator[str]:
    async with served(app) as base_url:
        yield base_url


def in_process(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door", timeout=60)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The application behind uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving
