"""What the routes share: made once by `create_app`, frozen, without state of its own."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from serve.assets.links import Links
from serve.assets.store import AssetStore
from serve.errors import NotFound
from serve.hot import Hot, HotFiles
from serve.jobs.service import ImageService
from serve.messages import JobView
from serve.presets.catalog import Catalog
from serve.settings import Settings
from serve.tokens import PromptTokens

_JOB_ID = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """`user` owns every job that comes in here: there is no access control yet."""

    service: ImageService
    assets: AssetStore
    prompts: PromptTokens
    links: Links
    settings: Settings
    opened_at: int
    hot: HotFiles
    presets: Hot[Catalog]
    user: str = "anonymous"

    def base_url(self, connection: HTTPConnection) -> str:
        """What absolute URLs begin with: `public_url`, else the Host that the client asked."""
        if self.settings.public_url:
            return self.settings.public_url
        base = connection.base_url
        return str(base.replace(scheme=base.scheme.replace("ws", "http"))).rstrip("/")

    def asset_url(self, base: str, asset_id: str, now: float) -> str:
        """Signed."""
        return f"{base}/v1/assets/{asset_id}?{self.links.sign(asset_id, now)}"

    async def job(self, job_id: str) -> JobView:
        """Raises NotFound, for other users' jobs too."""
        if is_job_id(job_id):
            with suppress(NotFound):
                view = await self.service.get(job_id)
                if view.user == self.user:
                    return view
        raise NotFound(
            f"no job {job_id[:64]!r}", param="job_id", hint="it may have been deleted; GET /v1/jobs lists yours"
        )


def is_job_id(text: str) -> bool:
    return _JOB_ID.fullmatch(text) is not None


async def _door(connection: HTTPConnection) -> Door:
    return cast(Door, connection.app.state.door)


TheDoor = Annotated[Door, Depends(_door)]
