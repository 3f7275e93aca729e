"""Signing in at an OpenID provider: the authorization code flow with PKCE, begun by any Gateway and ended by any.

Nothing is remembered here: the browser keeps the `state` in a signed cookie, and nonce and PKCE verifier are derived
from it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx2
import structlog

from serve.access.identity import Identity
from serve.access.oidc import KEYS_KEPT_S, TIMEOUT_S, InvalidToken, OpenIdProvider, discovered
from serve.access_settings import OidcSettings, is_loopback
from serve.errors import SignInExpired, SignInFailed, SignInRefused, Unavailable

COOKIE = "zimage_sign_in"
TTL_S = 600
MAX_COOKIE = 256  # characters
BEGIN_AGAIN = "begin again: /auth/oidc/login"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """URLs of a provider. `basic`: the client's secret goes into the Authorization header, else into the body."""

    authorization: str
    token: str
    userinfo: str | None
    end_session: str | None
    basic: bool

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Endpoints:
        """Raises KeyError and ValueError."""
        methods = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        endpoints = cls(
            str(found["authorization_endpoint"]),
            str(found["token_endpoint"]),
            found.get("userinfo_endpoint"),
            found.get("end_session_endpoint"),
            "client_secret_basic" in methods,
        )
        for url in (endpoints.authorization, endpoints.token, endpoints.userinfo, endpoints.end_session):
            if url is not None and not _private(url):
                raise ValueError(f"{url} is not https")
        return endpoints


class OpenIdSignIn:
    def __init__(self, settings: OidcSettings, provider: OpenIdProvider, key: bytes) -> None:
        assert settings.client_id is not None
        self._settings = settings
        self._client_id = settings.client_id
        self._provider = provider
        self._key = key
        self._endpoints: Endpoints | None = None
        self._asked_at = -float("inf")

    @property
    def label(self) -> str:
        return self._settings.label

    async def begin(self, redirect_uri: str) -> tuple[str, str]:
        """Where the browser goes, and the cookie that it keeps meanwhile. Raises Unavailable."""
        endpoints = await self._known()
        state = secrets.token_urlsafe(24)
        challenge = hashlib.sha256(self._derived("verifier", state).encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": state,
            "nonce": self._derived("nonce", state),
            "code_challenge": _base64(challenge),
            "code_challenge_method": "S256",
        }
        said = f"{state}.{int(time.time()) + TTL_S}"
        return _with_query(endpoints.authorization, asked), f"{said}.{self._derived('cookie', said)}"

    async def finish(self, cookie: str, answer: Mapping[str, str], redirect_uri: str) -> Identity:
        """The user whom the provider vouches for. `answer` is the query of the callback.

        Raises SignInExpired, SignInRefused, SignInFailed; Forbidden for a user without a role; Unavailable.
        """
        state = self._state_of(cookie)
        if state is None or not hmac.compare_digest(state.encode(), answer.get("state", "").encode()):
            raise SignInExpired(
                f"this sign-in was not begun in this browser, took over {TTL_S // 60} minutes, or is over",
                hint=BEGIN_AGAIN,
            )
        if answer.get("iss", self._settings.issuer) != self._settings.issuer:  # RFC 9207
            raise SignInFailed(f"the answer is of {answer['iss'][:100]!r}, another provider", hint=BEGIN_AGAIN)
        if "error" in answer:
            raise SignInRefused(
                f"{self.label} says {answer['error'][:64]!r}"
                + (f": {answer['error_description'][:200]}" if answer.get("error_description") else ""),
                hint=BEGIN_AGAIN,
            )
        if not answer.get("code"):
            raise SignInFailed("the answer holds no code", hint=BEGIN_AGAIN)
        return await self._exchanged(answer["code"], state, redirect_uri)

    async def leave(self, home: str) -> str:
        """Where the browser goes to be signed out at the provider too, and comes back from to `home`."""
        end_session = (await self._known()).end_session
        if end_session is None:
            return home
        return _with_query(end_session, {"client_id": self._client_id, "post_logout_redirect_uri": home})

    async def _exchanged(self, code: str, state: str, redirect_uri: str) -> Identity:
        endpoints = await self._known()
        try:
            async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
                tokens = await self._tokens(client, endpoints, code, state, redirect_uri)
                claims = await self._provider.claims(
                    str(tokens["id_token"]), self._client_id, self._derived("nonce", state)
                )
                if claims.get("azp", self._client_id) != self._client_id:
                    raise InvalidToken("azp names another client")
                if endpoints.userinfo is not None and self._lacking(claims):
                    claims = await self._userinfo(client, endpoints.userinfo, tokens, claims["sub"]) | claims
        except httpx2.HTTPError as error:
            _log.error("the OpenID provider does not answer", error=f"{type(error).__name__}: {error}")
            raise Unavailable("the OpenID provider is not answering", hint="try again", retry_after=5) from None
        except (InvalidToken, ValueError, KeyError, TypeError) as error:
            _log.warning("an answer of the OpenID provider proves nothing", reason=f"{type(error).__name__}: {error}")
            raise SignInFailed("the provider's answer does not prove who you are", hint=BEGIN_AGAIN) from None
        identity = self._provider.identity(claims, None)
        if identity is None:
            raise SignInFailed(f"the provider names no {self._settings.user_claim}", hint="ask the operator")
        return identity

    async def _tokens(
        self, client: httpx2.AsyncClient, endpoints: Endpoints, code: str, state: str, redirect_uri: str
    ) -> dict[str, Any]:
        """A code works once: the provider takes no second one of the same sign-in."""
        secret = self._settings.client_secret
        body = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": self._derived("verifier", state),
        }
        headers = {}
        if secret is not None and endpoints.basic:
            said = f"{quote(self._client_id, safe='')}:{quote(secret, safe='')}"  # RFC 6749, 2.3.1
            headers["Authorization"] = f"Basic {base64.b64encode(said.encode()).decode()}"
        else:
            body["client_id"] = self._client_id
            if secret is not None:
                body["client_secret"] = secret
        answer = await client.post(endpoints.token, data=body, headers=headers)
        if answer.status_code in (400, 401, 403):
            _log.warning("the OpenID provider takes no code", status=answer.status_code, answer=answer.text[:300])
            raise SignInFailed("the provider does not take its own code", hint=BEGIN_AGAIN)
        answer.raise_for_status()
        tokens: dict[str, Any] = answer.json()
        return tokens

    def _lacking(self, claims: Mapping[str, Any]) -> bool:
        """Many providers tell names and groups only when they are asked."""
        return any(name not in claims for name in (self._settings.user_claim, self._settings.role_claim.split(".")[0]))

    async def _userinfo(
        self, client: httpx2.AsyncClient, url: str, tokens: Mapping[str, Any], sub: str
    ) -> dict[str, Any]:
        answer = await client.get(url, headers={"Authorization": f"Bearer {tokens['access_token']}"})
        answer.raise_for_status()
        said: dict[str, Any] = answer.json()
        if said["sub"] != sub:
            raise InvalidToken("userinfo is of somebody else")
        return said

    async def _known(self) -> Endpoints:
        """Asked once an hour; while the provider is away the old ones count."""
        if self._endpoints is None or time.monotonic() - self._asked_at > KEYS_KEPT_S:
            try:
                async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
                    self._endpoints = Endpoints.of(await discovered(client, self._settings.issuer))
                self._asked_at = time.monotonic()
            except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
                _log.error("the OpenID provider says nothing of itself", error=f"{type(error).__name__}: {error}")
        if self._endpoints is None:
            raise Unavailable("the OpenID provider is not answering", hint="try again", retry_after=5)
        return self._endpoints

    def _state_of(self, cookie: str) -> str | None:
        said, _, signature = cookie.rpartition(".")
        state, _, expires = said.partition(".")
        if not state or len(cookie) > MAX_COOKIE or not cookie.isascii():
            return None
        if not hmac.compare_digest(self._derived("cookie", said), signature):
            return None
        return state if time.time() < int(expires) else None

    def _derived(self, purpose: str, text: str) -> str:
        return _base64(hmac.new(self._key, f"sign-in {purpose}\n{text}".encode(), hashlib.sha256).digest())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"


def _private(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
