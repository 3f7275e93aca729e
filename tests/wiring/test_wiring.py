"""The application as `build` wires it, in Ray Serve's local testing mode: four deployments, one process, no Ray."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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
from serve.messages import Event, ImageRequest, Preview, Submission, Succeeded
from serve.settings import Settings

Handles = dict[str, DeploymentHandle]


class LateHandle:
    """A handle to a deployment that is created later."""

    def __init__(self, handles: Handles, name: str) -> None:
        self._handles, self._name = handles, name

    def __getattr__(self, method: str) -> object:
        if self._name not in self._handles:
            raise RayServeException(f"{self._name} is not there yet")
        return getattr(self._handles[self._name], method)


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Handles:
    handles: Handles = {}
    make = local_testing_mode.make_local_deployment_handle

    def remember(deployment: serve.Deployment, app_name: str) -> DeploymentHandle:
        handles[deployment.name] = make(deployment, app_name)
        return handles[deployment.name]

    numbers = itertools.count()
    for module in (deployments.text_encoder, deployments.denoiser, deployments.gateway):
        monkeypatch.setattr(module, "replica_id", lambda: f"replica-{next(numbers)}")
    monkeypatch.setattr(deployments.replica, "dispatcher_handle", lambda: LateHandle(handles, "Dispatcher"))
    monkeypatch.setattr(serve.api, "make_local_deployment_handle", remember)
    _pretend_to_be_in_a_replica()
    serve.run(build(Settings(data=tmp_path, warmup_sizes_px=(64,))), name="zimage", _local_testing_mode=True)
    return handles


def _pretend_to_be_in_a_replica() -> None:
    """`@serve.batch` asks for the replica that it runs in, which local testing mode does not provide."""
    context._set_internal_replica_context(
        replica_id=ReplicaID("local", DeploymentID("Denoiser", "zimage")),
        servable_object=None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=64),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )


async def draw(service: RemoteService, **wish: object) -> list[Event]:
    usual = {"model": "z-image-turbo", "prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 1}
    request = ImageRequest(**usual | wish)
    submission = Submission(job_id=str(ULID()), request=request, prompt_tokens=20, previews=1)
    await service.submit(submission)
    return [event async for event in service.watch(submission.job_id)]


@pytest.fixture
async def service(handles: Handles) -> AsyncIterator[RemoteService]:
    service = RemoteService(handles["Dispatcher"], "test")
    service.open()
    async with asyncio.timeout(30):
        while not (await service.status()).ready:
            await asyncio.sleep(0.05)
    yield service
    service.close()


async def test_a_picture_goes_through_all_deployments(handles: Handles, service: RemoteService, tmp_path: Path) -> None:
    assert set(handles) == {"Gateway", "Dispatcher", "TextEncoder", "Denoiser"}
    alone, guided = await asyncio.gather(draw(service), draw(service, guidance=2.0, n=2))
    for events, images in ((alone, 1), (guided, 2)):
        assert isinstance(events[-1], Succeeded)
        assert sum(isinstance(event, Preview) for event in events) == images
        assert len(events[-1].images) == images
    (file,) = (tmp_path / "assets").rglob(f"{alone[-1].images[0].asset_id}.png")
    assert np.asarray(Image.open(file)).shape == (64, 64, 3)
