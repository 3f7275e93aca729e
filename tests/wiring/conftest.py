"""The application as `build` wires it, in Ray Serve's local testing mode: one process, no Ray."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from ray import serve
from ray.serve import context
from ray.serve._private import local_testing_mode
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from ulid import ULID

import deployments.denoiser
import deployments.gateway
import deployments.replica
import deployments.text_encoder
from deployments.app import build
from deployments.remote import RemoteService
from serve.messages import Event, ImageRequest, Submission
from serve.settings import Settings

Handles = dict[str, DeploymentHandle]
Wire = Callable[[Settings], Handles]


class LateHandle:
    """A handle to a deployment that is created later."""

    def __init__(self, handles: Handles, name: str) -> None:
        self._handles, self._name = handles, name

    def __getattr__(self, method: str) -> object:
        if self._name not in self._handles:
            raise RayServeException(f"{self._name} is not there yet")
        return getattr(self._handles[self._name], method)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Starts all deployments, and gives handles to them by their names."""
    handles: Handles = {}
    make = local_testing_mode.make_local_deployment_handle

    def remember(deployment: serve.Deployment, app_name: str) -> DeploymentHandle:
        handles[deployment.name] = make(deployment, app_name)
        return handles[deployment.name]

    def start(settings: Settings) -> Handles:
        serve.run(build(settings), name="zimage", _local_testing_mode=True)
        return handles

    numbers = itertools.count()
    for module in (deployments.text_encoder, deployments.denoiser, deployments.gateway):
        monkeypatch.setattr(module, "replica_id", lambda: f"replica-{next(numbers)}")
    monkeypatch.setattr(deployments.replica, "dispatcher_handle", lambda: LateHandle(handles, "Dispatcher"))
    monkeypatch.setattr(serve.api, "make_local_deployment_handle", remember)
    _pretend_to_be_in_a_replica()
    return start


def _pretend_to_be_in_a_replica() -> None:
    """`@serve.batch` asks for the replica that it runs in, which local testing mode does not provide."""
    context._set_internal_replica_context(
        replica_id=ReplicaID("local", DeploymentID("Denoiser", "zimage")),
        servable_object=None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=64),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )


@asynccontextmanager
async def service_of(handles: Handles) -> AsyncIterator[RemoteService]:
    service = RemoteService(handles["Dispatcher"], "test")
    service.open()
    async with asyncio.timeout(60):
        while not (await service.status()).ready:
            await asyncio.sleep(0.05)
    yield service
    service.close()


async def submitted(service: RemoteService, **wish: object) -> str:
    usual = {"model": "z-image-turbo", "prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 1}
    request = ImageRequest(**usual | wish)  # type: ignore[arg-type]
    submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=20, previews=1)
    return await service.submit(submission)


async def draw(service: RemoteService, **wish: object) -> list[Event]:
    job_id = await submitted(service, **wish)
    return [event async for event in service.watch(job_id)]
