"""API keys: shown once, kept as an HMAC, and looked up in a copy that is never older than two seconds."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ulid import ULID

from serve.access_settings import ROLES, RoleName
from serve.errors import InvalidRequest
from serve.secret import derived, secret_of
from serve.settings import Settings

PREFIX = "zk_"
KEY_BYTES = 32
FRESH_S = 2.0  # a revoked key works no longer than this
MISS_S = 0.25  # a key that is not known is looked for again this often, so that a new one works at once

_NAME = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")
_KEY = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is stored, never the key itself. Times are Unix seconds."""

    id: str
    digest: str
    name: str
    role: RoleName
    user: str
    last_four: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def valid(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def pepper_of(settings: Settings) -> bytes:
    """What the HMACs of keys are made with: another secret makes every key a stranger."""
    return derived(secret_of(settings), "api keys")


def create(
    pepper: bytes, *, name: str, role: str, user: str | None = None, ttl_s: float | None = None
) -> tuple[str, ApiKey]:
    """The key, which nobody can see again, and what is stored of it. Raises InvalidRequest."""
    user = name if user is None else user
    for param, value in (("name", name), ("user", user)):
        if not _NAME.fullmatch(value):
            raise InvalidRequest(
                f"{param} {value[:64]!r} is not a name", param=param, hint="1 to 64 printable ASCII characters"
            )
    if user == "anonymous":
        raise InvalidRequest("user 'anonymous' is who asks while access is open", param="user", hint="take another")
    if role not in ROLES:
        raise InvalidRequest(f"unknown role {role[:64]!r}", param="role", hint=f"one of {', '.join(ROLES)}")
    key, now = PREFIX + secrets.token_urlsafe(KEY_BYTES), time.time()
    stored = ApiKey(
        id=str(ULID()),
        digest=digest(pepper, key),
        name=name,
        role=role,
        user=user,
        last_four=key[-4:],
        created_at=now,
        expires_at=None if ttl_s is None else now + ttl_s,
    )
    return key, stored


def digest(pepper: bytes, key: str) -> str:
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


class KeyRing:
    """All keys, as `load` tells them; asked at most every two seconds however many requests come."""

    def __init__(
        self,
        load: Callable[[], Awaitable[Sequence[ApiKey]]],
        pepper: bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self.pepper = pepper
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._loaded_at = -float("inf")
        self._loading: asyncio.Task[None] | None = None

    async def any(self) -> bool:
        """Whether a key was ever made: revoking the last one opens no door."""
        await self._refresh(FRESH_S)
        return bool(self._keys)

    async def find(self, key: str) -> ApiKey | None:
        """The valid key of this text. Only a digest is looked up, so how long it takes says nothing of other keys."""
        if not _KEY.fullmatch(key):
            return None
        wanted = digest(self.pepper, key)
        await self._refresh(FRESH_S)
        if wanted not in self._keys:
            await self._refresh(MISS_S)
        found = self._keys.get(wanted)
        return found if found is not None and found.valid(time.time()) else None

    async def by_id(self, key_id: str) -> ApiKey | None:
        """The valid key of this id."""
        await self._refresh(FRESH_S)
        found = next((key for key in self._keys.values() if key.id == key_id), None)
        return found if found is not None and found.valid(time.time()) else None

    def forget(self) -> None:
        """The next look is a fresh one."""
        self._loaded_at = -float("inf")

    async def _refresh(self, max_age_s: float) -> None:
        if self._clock() - self._loaded_at < max_age_s:
            return
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._reload())
        await asyncio.shield(self._loading)

    async def _reload(self) -> None:
        asked_at = self._clock()
        self._keys = {key.digest: key for key in await self._load()}
        self._loaded_at = asked_at
