"""What the routes share: made once by `create_app`, frozen, without state of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from serve.access.authenticate import Authenticator
from serve.access.caller import NOBODY, Caller
from serve.assets.links import Links
from serve.assets.store import ASSET_ID, AssetStore, no_asset
from serve.assets.thumbnails import Thumbnails
from serve.errors import Forbidden, NotFound, ZImageError
from serve.hot import Hot, HotFiles
from serve.jobs.service import ImageService
from serve.messages import AssetQuery, AssetView, JobView
from serve.metrics.tally import Recorder
from serve.presets.catalog import Catalog
from serve.settings import Settings
from serve.tokens import PromptTokens
from serve.webhooks.guard import Guard
from serve.webhooks.signing import Keys

DECODED_AT_ONCE = 2  # input pictures: each may take hundreds of megabytes for a moment

_JOB_ID = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One of the models, as requests meet it: its own settings, and its tokenizer."""

    settings: Settings
    prompts: PromptTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """For one request: `caller` is who sends it, `traceparent` the header, where there is a valid one.

    `settings` are the service's, which are also its first model's; `offers` has all models, by their names.
    """

    service: ImageService
    assets: AssetStore
    thumbnails: Thumbnails
    links: Links
    webhook_guard: Guard
    webhook_keys: Keys
    settings: Settings
    offers: Mapping[str, Offer]
    access: Authenticator
    opened_at: int
    hot: HotFiles
    presets: Hot[Catalog]
    recorder: Recorder
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DECODED_AT_ONCE))
    caller: Caller = NOBODY
    request_id: str | None = None
    traceparent: str | None = None

    def offer(self, model: str) -> Offer:
        return self.offers[model]

    @property
    def user(self) -> str:
        """Whose jobs are submitted here, and listed."""
        return self.caller.user

    @property
    def whose(self) -> str | None:
        """Whose pictures may be seen and deleted by their ids; None is everybody's."""
        return None if self.caller.sees_all else self.user

    def base_url(self, connection: HTTPConnection) -> str:
        """What absolute URLs begin with: `public_url`, else the Host that the client asked."""
        if self.settings.public_url:
            return self.settings.public_url
        base = connection.base_url
        return str(base.replace(scheme=base.scheme.replace("ws", "http"))).rstrip("/")

    def asset_url(self, base: str, asset_id: str, now: float) -> str:
        """Signed."""
        return self.links.asset_url(base, asset_id, now)

    def thumbnail_url(self, base: str, asset_id: str, now: float) -> str:
        """Signed for the thumbnail alone: it does not open the picture."""
        return self.links.thumbnail_url(base, asset_id, now)

    async def check_room(self, model: str) -> None:
        """Before any work of this model. Raises StoreFull, StoreUnavailable."""
        try:
            await self.assets.check_room()
        except ZImageError as refusal:
            self.recorder.count("zimage_refusals_total", model, refusal.code)
            raise

    async def asset(self, asset_id: str) -> AssetView:
        """Raises NotFound, for other users' pictures too."""
        if ASSET_ID.fullmatch(asset_id):
            query = AssetQuery(user=self.whose, ids=frozenset([asset_id]))
            for view in await self.service.find_assets(query):
                return view
        raise no_asset(asset_id)

    def owner(self, asked: str | None) -> str | None:
        """Whose things are listed: one's own; an admin may ask for another's, or with `*` for everybody's.

        Raises Forbidden.
        """
        if asked is None or asked == self.user:
            return self.user
        if not self.caller.sees_all:
            raise Forbidden("only admins may list what is not their own", param="user", hint="leave user out")
        return None if asked == "*" else asked

    async def job(self, job_id: str) -> JobView:
        """Raises NotFound, for other users' jobs too."""
        if is_job_id(job_id):
            with suppress(NotFound):
                view = await self.service.get(job_id)
                if self.caller.owns(view.user):
                    return view
        raise NotFound(
            f"no job {job_id[:64]!r}", param="job_id", hint="it may have been deleted; GET /v1/jobs lists yours"
        )


def is_job_id(text: str) -> bool:
    return _JOB_ID.fullmatch(text) is not None


async def _door(connection: HTTPConnection) -> Door:
    state = connection.state
    door = cast(Door, connection.app.state.door)
    return replace(door, caller=state.caller, request_id=state.request_id, traceparent=state.traceparent)


TheDoor = Annotated[Door, Depends(_door)]
