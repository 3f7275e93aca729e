"""What webhooks say, who sends them, and where a user finds the secret that they are signed with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from serve.api.deps import TheDoor
from serve.api.docs import WEBHOOK_SECRET
from serve.api.job_json import job_json, rfc3339
from serve.assets.links import Links, open_links
from serve.jobs.store import JobStore
from serve.messages import JobView
from serve.settings import Settings
from serve.webhooks.courier import Courier
from serve.webhooks.sender import Sender
from serve.webhooks.signing import open_keys

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.get("/webhook-secret", **WEBHOOK_SECRET)
async def webhook_secret(door: TheDoor) -> dict[str, Any]:
    newest, *previous = door.webhook_keys.of(door.user)
    return {"object": "webhook.secret", "secret": newest, "previous_secret": previous[0] if previous else None}


def open_courier(settings: Settings, store: JobStore, count: Callable[[str], None]) -> Courier:
    """Over a store that is open; it begins with `Courier.open`."""
    links, base = open_links(settings), settings.public_url or ""
    return Courier(
        settings.webhooks,
        store,
        open_keys(settings),
        Sender(settings.webhooks),
        lambda view: event(links, base, view),
        count,
    )


def event(links: Links, base: str, view: JobView) -> str:
    """The event that ended a job, as JSON: like those of its SSE and WebSocket, but with the whole job.

    Without a `base` its URLs begin with the path. `timestamp` is what Standard Webhooks calls `at`.
    """
    at = rfc3339(view.completed_at)
    said = {"type": f"job.{view.status}", "timestamp": at, "job_id": view.id, "seq": view.seq, "at": at}
    return json.dumps(said | {"data": job_json(links, base, view)}, ensure_ascii=False, separators=(",", ":"))
