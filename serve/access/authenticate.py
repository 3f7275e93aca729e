"""From the headers of a request to its caller: API key, OpenID token, directory password, or the page's session."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any, cast
from weakref import WeakValueDictionary

from starlette.requests import HTTPConnection

from serve.access.attempts import Attempts, address_of
from serve.access.caller import ANONYMOUS, Caller, Via
from serve.access.identity import Identity
from serve.access.keys import KeyRing
from serve.access.ldap import Directory
from serve.access.oidc import OpenIdProvider
from serve.access.oidc_sign_in import OpenIdSignIn
from serve.access.roles import terms
from serve.access.sessions import COOKIE, Sessions
from serve.access_settings import AccessSettings, RoleName
from serve.errors import Unauthenticated

KEY_HEADERS = ("api-key", "x-api-key")
MAX_CREDENTIALS = 16_384  # characters
MAX_NAME = 128


class Authenticator:
    """`exposed`: others than this machine can reach the service, so nobody comes in without saying who they are."""

    def __init__(self, settings: AccessSettings, keys: KeyRing, sessions: Sessions, *, exposed: bool) -> None:
        self._settings = settings
        self._exposed = exposed
        self.keys = keys
        self.sessions = sessions
        self._oidc = OpenIdProvider(settings.oidc) if settings.oidc else None
        self._ldap = Directory(settings.ldap) if settings.ldap else None
        self._wrong_keys = Attempts(settings.failed_sign_ins_per_minute)
        self._wrong_passwords = Attempts(settings.failed_sign_ins_per_minute)
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.oidc_sign_in = (
            OpenIdSignIn(settings.oidc, self._oidc, sessions.key)
            if settings.oidc and self._oidc and settings.oidc.client_id
            else None
        )

    @property
    def passwords(self) -> bool:
        """Whether users of a directory come in by their passwords."""
        return self._ldap is not None

    @property
    def challenge(self) -> str:
        basic = ', Basic realm="zimage", charset="UTF-8"' if self._ldap else ""
        return f'Bearer realm="zimage"{basic}'

    async def closed(self) -> bool:
        """Whether callers must say who they are. With the first API key an open service closes, for good."""
        mode = self._settings.mode
        if mode != "auto":
            return mode == "required"
        return self._exposed or self._oidc is not None or self._ldap is not None or await self.keys.any()

    async def caller(self, connection: HTTPConnection) -> Caller:
        """Raises Unauthenticated, always the same one, or after many TooManySignIns; Forbidden for a known user
        without a role; Unavailable.
        """
        if not await self.closed():
            return ANONYMOUS
        if (caller := await self._known(connection)) is not None:
            return caller
        raise Unauthenticated(
            "no valid credentials",
            hint="send Authorization: Bearer KEY; `zimage keys create NAME` makes a key",
            challenge=self.challenge,
        )

    async def still_valid(self, caller: Caller) -> bool:
        """Of a caller who came in earlier, whether the key was revoked or has expired since."""
        return caller.key_id is None or await self.keys.by_id(caller.key_id) is not None

    def vouched(self, identity: Identity) -> Caller:
        """Who has signed in at the OpenID provider."""
        return self._admit(identity.user, identity.role, "oidc", expires_at=identity.expires_at)

    async def _known(self, connection: HTTPConnection) -> Caller | None:
        scheme, credentials = _credentials(connection)
        if len(credentials) > MAX_CREDENTIALS:
            return None
        if scheme == "basic" and self._ldap is not None:
            return await self._by_password(connection, credentials)
        if scheme in ("bearer", "api-key"):
            caller = await self._by_key(credentials) or await self._by_token(credentials)
            if caller is None and credentials.count(".") != 2:  # nobody guesses tokens; clients renew them after 401
                self._wrong_keys.failed(address_of(connection))
            return caller
        if not scheme and (cookie := connection.cookies.get(COOKIE)):
            return await self._by_session(cookie)
        return None

    async def _by_key(self, text: str) -> Caller | None:
        key = await self.keys.find(text)
        if key is None:
            return None
        return self._admit(key.user, key.role, "key", key_id=key.id, expires_at=key.expires_at)

    async def _by_token(self, token: str) -> Caller | None:
        if self._oidc is None or token.count(".") != 2:
            return None
        identity = await self._oidc.identify(token)
        return None if identity is None else self.vouched(identity)

    async def _by_password(self, connection: HTTPConnection, credentials: str) -> Caller | None:
        """The directory is not asked about a name that was wrong too often from there."""
        assert self._ldap is not None
        try:
            user, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:  # not base64, or not UTF-8
            return None
        who = (address_of(connection), user.lower()[:MAX_NAME])
        async with self._turns.setdefault(who, asyncio.Lock()):  # else many at once would all pass the check
            self._wrong_passwords.check(*who)
            identity = await self._ldap.identify(user, password) if colon else None
            if identity is None:
                self._wrong_passwords.failed(*who)
                return None
        return self._admit(identity.user, identity.role, "ldap")

    async def _by_session(self, cookie: str) -> Caller | None:
        said = self.sessions.read(cookie)
        if said is None:
            return None
        if said["k"] is not None:  # as the key is now: revoking it ends its sessions
            key = await self.keys.by_id(said["k"])
            if key is None:
                return None
            said |= {"u": key.user, "r": key.role}
        caller = self._admit(
            said["u"], cast(RoleName, said["r"]), cast(Via, said["v"]), key_id=said["k"], expires_at=said["e"]
        )
        return replace(caller, session=cookie)

    def _admit(self, user: str, role: RoleName, via: Via, **more: Any) -> Caller:
        return Caller(user=user, role=role, via=via, **terms(self._settings, user, role), **more)


def _credentials(connection: HTTPConnection) -> tuple[str, str]:
    """Scheme in lower case, and what follows; both empty where only a cookie may speak."""
    if (sent := connection.headers.get("authorization")) is not None:
        scheme, _, credentials = sent.partition(" ")
        return scheme.lower() or "none", credentials.strip()
    for name in KEY_HEADERS:
        if (key := connection.headers.get(name)) is not None:
            return "api-key", key.strip()
    return "", ""
