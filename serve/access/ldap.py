"""Users of an LDAP directory: the directory itself judges the password, by a bind as that user."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
from cachetools import TTLCache

from serve.access.identity import Identity, role_of
from serve.access_settings import LdapSettings, RoleName
from serve.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from ldap3 import Connection

THREADS = 4
REMEMBERED = 10_000

_REFUSALS = ("invalidCredentials", "noSuchObject", "invalidDNSyntax")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,128}")
_log = structlog.get_logger(__name__)


class Directory:
    """Names differ by more than case: the directory would take `Alice` for `alice`, and both have one quota."""

    def __init__(self, settings: LdapSettings) -> None:
        try:
            import ldap3  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise ConfigError("access.ldap needs the package ldap3", hint="pip install 'zimage-serve[ldap]'") from error
        self._ldap3: Any = ldap3
        self._settings = settings
        self._server = ldap3.Server(
            settings.url,
            tls=_verified(ssl.create_default_context(cafile=settings.ca_file)),
            get_info=ldap3.NONE,
            connect_timeout=settings.timeout_s,
            allowed_referral_hosts=[],
        )
        self._threads = ThreadPoolExecutor(THREADS, "ldap")
        self._salt = secrets.token_bytes(32)  # what is remembered is of no use outside this process
        self._accepted: TTLCache[bytes, Identity] = TTLCache(REMEMBERED, settings.cache_s or 1e-9)

    async def identify(self, user: str, password: str) -> Identity | None:
        """None for a wrong name or password. Raises Forbidden without a role, Unavailable without a directory."""
        if not password or "\0" in password or not _NAME.fullmatch(user):
            return None  # a bind without a password is anonymous, and succeeds for everybody
        user = user.lower()
        known = hmac.new(self._salt, f"{user}\0{password}".encode(), hashlib.sha256).digest()
        if (identity := self._accepted.get(known)) is not None:
            return identity
        identity = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, user, password)
        if identity is not None:
            self._accepted[known] = identity
        return identity

    def _ask(self, user: str, password: str) -> Identity | None:
        try:
            dn = self._dn(user)
            if dn is None:
                return None
            with self._bound(dn, password) as connection:
                if connection is None:
                    return None
                groups = self._groups(connection, dn, user)
        except self._ldap3.core.exceptions.LDAPException as error:
            _log.error("the directory is not answering", error=f"{type(error).__name__}: {error}")
            raise Unavailable("the directory is not answering", hint="try again", retry_after=5) from None
        name = self._settings.user_prefix + user
        return Identity(user=name, role=role_of(name, self._roles(groups), self._settings.default_role))

    def _dn(self, user: str) -> str | None:
        """By the template, or the one entry that the search finds."""
        settings = self._settings
        if settings.user_dn is not None:
            return settings.user_dn.replace("{user}", self._ldap3.utils.dn.escape_rdn(user))
        with self._bound(settings.bind_dn, settings.bind_password) as connection:
            if connection is None:
                raise self._ldap3.core.exceptions.LDAPBindError(f"{settings.bind_dn} may not search")
            found = self._search(connection, settings.search_base, settings.search_filter, user=user)
        return found[0] if len(found) == 1 else None

    @contextmanager
    def _bound(self, dn: str | None, password: str | None) -> Iterator[Connection | None]:
        """A connection as this one, or None when the password is refused. ldap3's own `with` leaves sockets open."""
        connection = self._ldap3.Connection(
            self._server,
            dn,
            password,
            read_only=True,
            auto_referrals=False,
            receive_timeout=self._settings.timeout_s,
        )
        try:
            connection.open()
            if self._settings.start_tls:
                connection.start_tls()
            bound = connection.bind()
            if not bound and connection.result["description"] not in _REFUSALS:
                raise self._ldap3.core.exceptions.LDAPBindError(connection.result["description"])
            yield connection if bound else None
        finally:
            opened = connection.socket
            if opened is not None:
                connection.strategy.close()  # which leaves one open that never came through
                opened.close()

    def _groups(self, connection: Connection, dn: str, user: str) -> list[str]:
        if self._settings.group_base is None:
            return []
        return self._search(connection, self._settings.group_base, self._settings.group_filter, user=user, dn=dn)

    def _search(self, connection: Any, base: str | None, template: str, **values: str) -> list[str]:
        """DNs of what fits; values are escaped, so that none of them is read as part of the filter."""
        escape = self._ldap3.utils.conv.escape_filter_chars
        for name, value in values.items():
            template = template.replace(f"{{{name}}}", escape(value))
        connection.search(base, template, attributes=["1.1"])
        return [entry["dn"] for entry in connection.response if entry["type"] == "searchResEntry"]

    def _roles(self, groups: list[str]) -> list[RoleName]:
        roles = {_plain(dn): role for dn, role in self._settings.roles.items()}
        return [roles[_plain(dn)] for dn in groups if _plain(dn) in roles]


def _verified(context: ssl.SSLContext) -> Any:
    """OpenSSL compares the host's name: ldap3 does so with a function that Python has given up."""
    import ldap3  # noqa: PLC0415

    class Verified(ldap3.Tls):  # type: ignore[misc]  # has no types
        def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:  # noqa: ARG002
            connection.socket = context.wrap_socket(connection.socket, server_hostname=connection.server.host)

    return Verified()


def _plain(dn: str) -> str:
    """As DNs are compared: without case, and without spaces around commas."""
    return re.sub(r"\s*,\s*", ",", dn.strip()).lower()
