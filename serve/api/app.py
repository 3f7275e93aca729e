"""The HTTP door: routes, error shape and request ids around one ImageService."""

from __future__ import annotations

import time

from fastapi import FastAPI

from serve.api import assets as pictures
from serve.api import errors, events, jobs, openai, ops, ws
from serve.api.deps import Door
from serve.api.docs import DocumentedApp
from serve.api.envelope import Envelope
from serve.api.measured import Measured
from serve.assets.links import open_links
from serve.assets.store import AssetStore
from serve.jobs.service import ImageService
from serve.metrics.tally import Recorder
from serve.settings import Settings
from serve.tokens import PromptTokens


def create_app(
    service: ImageService,
    assets: AssetStore,
    prompts: PromptTokens,
    settings: Settings,
    *,
    echo_request_id: bool = True,
    recorder: Recorder | None = None,
) -> FastAPI:
    """`echo_request_id=False` behind Ray Serve, which puts the request's X-Request-ID on the answer itself.

    `recorder` counts the answers of this process.
    """
    app = DocumentedApp(title="Z-Image serving", version="1", redoc_url=None, redirect_slashes=False)
    app.state.door = Door(
        service=service,
        assets=assets,
        prompts=prompts,
        links=open_links(settings),
        settings=settings,
        opened_at=int(time.time()),
    )
    for concern in (openai, jobs, events, ws, pictures, ops):
        app.include_router(concern.router)
    errors.install(app)
    app.add_middleware(Envelope, echo=echo_request_id)
    app.add_middleware(Measured, recorder=recorder or Recorder())
    return app
