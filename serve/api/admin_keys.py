"""API keys, for admins: the same as `zimage keys`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.access import keys
from serve.access.keys import ApiKey
from serve.api.body import read_object
from serve.api.deps import TheDoor
from serve.api.docs import CREATE_KEY, KEYS, REVOKE_KEY
from serve.api.generation import parse
from serve.api.job_json import rfc3339
from serve.api.key_body import KeyBody
from serve.errors import InvalidRequest

router = APIRouter(prefix="/v1/admin/keys", tags=["access"])


@router.get("", **KEYS)
async def list_keys(door: TheDoor) -> dict[str, Any]:
    found = await door.service.api_keys()
    return {"object": "list", "data": [shown(key) for key in found], "has_more": False, "next_cursor": None}


@router.post("", **CREATE_KEY)
async def create_key(request: Request, door: TheDoor) -> Response:
    body, unknown = parse(KeyBody, await read_object(request, door.settings.limits))
    if unknown:
        raise InvalidRequest(f"unknown field {unknown[0][:64]!r}", param=unknown[0][:64], hint="see /docs")
    days = body.expires_in_days
    text, key = keys.create(
        door.access.keys.pepper,
        name=body.name,
        role=body.role,
        user=body.user,
        ttl_s=None if days is None else days * 86400,
    )
    await door.service.add_api_key(key)
    door.access.keys.forget()
    return JSONResponse(shown(key) | {"key": text}, 201, {"Cache-Control": "no-store"})


@router.delete("/{key_id}", **REVOKE_KEY)
async def revoke_key(key_id: str, door: TheDoor) -> dict[str, Any]:
    revoked = await door.service.revoke_api_key(key_id)
    door.access.keys.forget()
    return shown(revoked)


def shown(key: ApiKey) -> dict[str, Any]:
    """All but the digest."""
    said = {name: value for name, value in asdict(key).items() if name != "digest"}
    for name in ("created_at", "expires_at", "revoked_at"):
        said[name] = None if said[name] is None else rfc3339(said[name])
    return {"object": "api_key", **said}
