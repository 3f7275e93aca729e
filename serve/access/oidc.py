"""Bearer JWTs of an OpenID provider: signature by its published keys, issuer, audience, times, role."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2
import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from serve.access.identity import Identity, role_of
from serve.access_settings import OidcSettings, RoleName
from serve.errors import Unavailable

MAX_TOKEN = 8192  # characters
KEYS_KEPT_S = 3600.0
ASK_AGAIN_S = 10.0  # an unknown key id, or a provider that does not answer, is asked about no more often
TIMEOUT_S = 5.0

_log = structlog.get_logger(__name__)


class InvalidToken(Exception):
    """Says why, for the log."""


class UnknownKey(Exception):
    """The token names a key that the provider had not published when it was last asked."""


class OpenIdProvider:
    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._keys: KeySet | None = None
        self._asked_at = -float("inf")
        self._answered_at = -float("inf")
        self._asking = asyncio.Lock()

    async def identify(self, token: str) -> Identity | None:
        """None for whatever is not a valid token. Raises Forbidden without a role, Unavailable without keys."""
        if len(token) > MAX_TOKEN:
            return None
        try:
            claims = await self.claims(token, self._settings.audience)
        except InvalidToken:
            return None
        return self.identity(claims, float(claims["exp"]) + self._settings.leeway_s)

    def identity(self, claims: dict[str, Any], expires_at: float | None) -> Identity | None:
        """None where they name no user. Raises Forbidden without a role."""
        name = claims.get(self._settings.user_claim)
        if not isinstance(name, str) or not name or len(name) > 256:
            return None
        user = self._settings.user_prefix + name
        role = role_of(user, self._roles(claims), self._settings.default_role)
        return Identity(user=user, role=role, expires_at=expires_at)

    async def claims(self, token: str, audience: str, nonce: str | None = None) -> dict[str, Any]:
        """What the provider says, to this audience, and where one was sent with this nonce.

        Raises InvalidToken, and Unavailable without keys.
        """
        required: dict[str, Any] = {
            "iss": {"essential": True, "value": self._settings.issuer},
            "aud": {"essential": True, "value": audience},
            "exp": {"essential": True},
        }
        if nonce is not None:
            required |= {"nonce": {"essential": True, "value": nonce}, "sub": {"essential": True}}
        try:
            claims = await self._signed(token)
            jwt.JWTClaimsRegistry(leeway=self._settings.leeway_s, **required).validate(claims)
        except (JoseError, ValueError, TypeError, UnknownKey) as error:
            raise InvalidToken(f"{type(error).__name__}: {error}") from None
        return claims

    async def _signed(self, token: str) -> dict[str, Any]:
        """The algorithm is the configured one's, never the token's choice."""
        try:
            decoded = self._decoded(token, await self._published(KEYS_KEPT_S))
        except UnknownKey:
            decoded = self._decoded(token, await self._published(ASK_AGAIN_S))
        return decoded.claims

    def _decoded(self, token: str, keys: KeySet) -> jwt.Token:
        def key_of(signed: Any) -> Any:
            key_id = signed.headers().get("kid")
            found = [key for key in keys.keys if key_id is None or key.kid == key_id]
            if not found or (key_id is None and len(found) > 1):
                raise UnknownKey
            return found[0]

        return jwt.decode(token, key_of, algorithms=list(self._settings.algorithms))

    def _roles(self, claims: dict[str, Any]) -> list[RoleName]:
        value: Any = claims
        for name in self._settings.role_claim.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        values = value if isinstance(value, list) else str(value).split()
        return [self._settings.roles[name] for name in values if isinstance(name, str) and name in self._settings.roles]

    async def _published(self, max_age_s: float) -> KeySet:
        """The provider's keys, no older than that where it answers; one that does not is asked every ten seconds."""
        if self._due(max_age_s):
            async with self._asking:
                if self._due(max_age_s):
                    await self._ask()
        if self._keys is None:
            raise Unavailable("the OpenID provider is not answering", hint="try again", retry_after=int(ASK_AGAIN_S))
        return self._keys

    def _due(self, max_age_s: float) -> bool:
        now = time.monotonic()
        return now - self._answered_at > max_age_s and now - self._asked_at > ASK_AGAIN_S

    async def _ask(self) -> None:
        asked_at = time.monotonic()
        try:
            self._keys = await self._fetch()
            self._answered_at = asked_at
        except (httpx2.HTTPError, JoseError, ValueError, KeyError, TypeError) as error:
            _log.error("the OpenID provider does not give its keys", error=f"{type(error).__name__}: {error}")
        finally:
            self._asked_at = asked_at

    async def _fetch(self) -> KeySet:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
            url = self._settings.jwks_url
            if url is None:
                url = str((await discovered(client, self._settings.issuer))["jwks_uri"])
            return KeySet.import_key_set(await _json(client, url))


async def discovered(client: httpx2.AsyncClient, issuer: str) -> dict[str, Any]:
    """What the provider says of itself. Raises ValueError, KeyError, and httpx2's errors."""
    found: dict[str, Any] = await _json(client, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if found["issuer"] != issuer:
        raise ValueError(f"the provider calls itself {found['issuer']!r}")
    return found


async def _json(client: httpx2.AsyncClient, url: str) -> Any:
    answer = await client.get(url)
    answer.raise_for_status()
    return answer.json()
