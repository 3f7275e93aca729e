"""The HTTP door: routes, error shape and request ids around one ImageService."""

from __future__ import annotations

import time

from fastapi import FastAPI

from serve.api import admin, errors, events, jobs, openai, ops, presets_routes, ws
from serve.api import assets as pictures
from serve.api.deps import Door
from serve.api.docs import DocumentedApp
from serve.api.envelope import Envelope
from serve.assets.links import open_links
from serve.assets.store import AssetStore
from serve.hot import Hot, HotFiles
from serve.jobs.service import ImageService
from serve.presets.catalog import Catalog
from serve.presets.hot import no_presets
from serve.settings import Settings
from serve.tokens import PromptTokens


def create_app(
    service: ImageService,
    assets: AssetStore,
    prompts: PromptTokens,
    settings: Settings,
    *,
    presets: Hot[Catalog] | None = None,
    hot: HotFiles | None = None,
    echo_request_id: bool = True,
) -> FastAPI:
    """`presets` is one of the files of `hot`; without them there are none.

    `echo_request_id=False` behind Ray Serve, which puts the request's X-Request-ID on the answer itself."""
    presets = presets or no_presets()
    app = DocumentedApp(title="Z-Image serving", version="1", redoc_url=None, redirect_slashes=False)
    app.state.door = Door(
        service=service,
        assets=assets,
        prompts=prompts,
        links=open_links(settings),
        settings=settings,
        opened_at=int(time.time()),
        hot=hot or HotFiles(presets),
        presets=presets,
    )
    for concern in (openai, jobs, events, ws, pictures, presets_routes, admin, ops):
        app.include_router(concern.router)
    errors.install(app)
    app.add_middleware(Envelope, echo=echo_request_id)
    return app
