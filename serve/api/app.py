"""The HTTP door: routes, error shape and request ids around one ImageService."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from fastapi import FastAPI

from serve.access.authenticate import Authenticator
from serve.access.keys import KeyRing, pepper_of
from serve.access.sessions import Sessions
from serve.api import (
    admin,
    admin_keys,
    docs_page,
    edits,
    errors,
    events,
    gallery,
    huggingface,
    inputs_routes,
    jobs,
    me,
    openai,
    ops,
    page,
    presets_routes,
    sign_in,
    webhooks,
    ws,
)
from serve.api import assets as pictures
from serve.api.access_log import AccessLog
from serve.api.deps import Door, Offer
from serve.api.docs import DocumentedApp
from serve.api.envelope import Envelope
from serve.api.gate import Gate
from serve.api.kserve import routes as kserve
from serve.api.measured import Measured
from serve.api.slow_body import BodyDeadline
from serve.assets.links import open_links
from serve.assets.store import AssetStore
from serve.assets.thumbnails import Thumbnails
from serve.hot import Hot, HotFiles
from serve.jobs.service import ImageService
from serve.metrics.tally import Recorder
from serve.presets.catalog import Catalog
from serve.presets.hot import no_presets
from serve.pseudonym import Pseudonyms
from serve.secret import derived, secret_of
from serve.settings import Settings
from serve.tokens import PromptTokens
from serve.webhooks.guard import Guard
from serve.webhooks.signing import open_keys


def create_app(
    service: ImageService,
    assets: AssetStore,
    prompts: PromptTokens,
    settings: Settings,
    *,
    presets: Hot[Catalog] | None = None,
    hot: HotFiles | None = None,
    echo_request_id: bool = True,
    exposed: bool = False,
    recorder: Recorder | None = None,
    tokenizers: Mapping[str, PromptTokens] = MappingProxyType({}),
) -> FastAPI:
    """`prompts` are the first model's, `tokenizers` those of the others, by name.

    `presets` is one of the files of `hot`; without them there are none. `exposed` where other machines can reach us.

    `echo_request_id=False` behind Ray Serve, which puts the request's X-Request-ID on the answer itself. `recorder`
    counts the answers of this process.
    """
    access = _authenticator(service, settings, exposed)
    recorder = recorder or Recorder()
    presets = presets or no_presets()
    app = DocumentedApp(title="Z-Image serving", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.door = Door(
        service=service,
        assets=assets,
        offers=_offers(settings, prompts, tokenizers),
        thumbnails=Thumbnails(assets),
        links=open_links(settings),
        webhook_guard=Guard.of(settings.webhooks),
        webhook_keys=open_keys(settings),
        settings=settings,
        access=access,
        opened_at=int(time.time()),
        hot=hot or HotFiles(presets),
        presets=presets,
        recorder=recorder,
    )
    routers = (
        openai,
        edits,
        jobs,
        events,
        ws,
        webhooks,
        gallery,
        pictures,
        inputs_routes,
        presets_routes,
        me,
        sign_in,
        admin,
        admin_keys,
        ops,
        kserve,
        huggingface,
        page,
    )
    for concern in routers:
        app.include_router(concern.router)
    docs_page.install(app)
    errors.install(app)
    app.add_middleware(BodyDeadline, body_s=settings.timeouts.body_s)
    app.add_middleware(
        Gate,
        access=access,
        usage=service.usage,
        metrics_token=settings.access.metrics_token,
        exposed=exposed and settings.access.mode != "open",
    )
    app.add_middleware(Envelope, echo=echo_request_id)
    app.add_middleware(Measured, recorder=recorder, access_log=AccessLog(Pseudonyms.of(settings)))
    return app


def _offers(settings: Settings, prompts: PromptTokens, tokenizers: Mapping[str, PromptTokens]) -> dict[str, Offer]:
    others = {model: Offer(settings=settings.of(model), prompts=tokenizers[model]) for model in settings.models}
    return {settings.served_model_name: Offer(settings=settings, prompts=prompts)} | others


def _authenticator(service: ImageService, settings: Settings, exposed: bool) -> Authenticator:
    keys = KeyRing(service.api_keys, pepper_of(settings))
    sessions = Sessions(derived(secret_of(settings), "sessions"), settings.access.session_ttl_s)
    return Authenticator(settings.access, keys, sessions, exposed=exposed)
