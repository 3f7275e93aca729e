"""What the routes share: made once by `create_app`, frozen, without state of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from serve.assets.links import Links
from serve.assets.store import AssetStore
from serve.jobs.service import ImageService
from serve.settings import Settings
from serve.tokens import PromptTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    service: ImageService
    assets: AssetStore
    prompts: PromptTokens
    links: Links
    settings: Settings
    opened_at: int

    def asset_url(self, request: Request, asset_id: str, now: float) -> str:
        """Absolute, signed; its base is `public_url`, else the Host that the client asked."""
        base = self.settings.public_url or str(request.base_url).rstrip("/")
        return f"{base}/v1/assets/{asset_id}?{self.links.sign(asset_id, now)}"


async def _door(request: Request) -> Door:
    return cast(Door, request.app.state.door)


TheDoor = Annotated[Door, Depends(_door)]
