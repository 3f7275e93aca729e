"""Which URLs and addresses a webhook may go to: the internet, and what the operator allows of the own network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from serve.errors import InvalidRequest
from serve.settings import WebhookSettings

MAX_URL = 2048
LOW_PORTS = (80, 443)  # of those below 1024: a POST must not reach a mail server

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_URL = re.compile(r"(https?)://([^/?#]+)((?:[/?][^#]*)?)", re.IGNORECASE)
_CHARACTERS = re.compile(r"[!#-;=?-\[\]_a-z~]+", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^:@\[\]]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

_HINT = "send the https URL of a server on the internet, such as https://hooks.example.org/images"
_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_V6 = IPv6Network("2000::/3")
# Explicit, as `ipaddress.is_global` differs between versions of Python. Sources: IANA's special-purpose registries.
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's metadata server has a public address
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "2001::/23",  # Teredo, ORCHID, benchmarking
            "2001:db8::/32",
            "2002::/16",  # 6to4 wraps any IPv4 address
            "3fff::/20",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts that need no second parser: `host` is a lower-case name or an address without brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Guard:
    """`names` and `networks` are the operator's: there any port and plain http are allowed, too."""

    names: frozenset[str]
    networks: tuple[Network, ...]
    allow_http: bool

    @classmethod
    def of(cls, settings: WebhookSettings) -> Guard:
        networks = {entry: network for entry in settings.allow if (network := as_network(entry)) is not None}
        names = frozenset(entry.lower().rstrip(".") for entry in settings.allow if entry not in networks)
        return cls(names, tuple(networks.values()), settings.allow_http)

    def check(self, url: str) -> Target:
        """What can be said without asking DNS; where it leads is `admits`'. Raises InvalidRequest."""
        target = _parse(url)
        literal = _literal(target.host)
        if literal is not None and not self.admits(target.host, literal):
            raise _refused(f"the address {target.host} is not on the internet")
        if self._trusts(target.host, literal):
            return target
        if target.host == "localhost" or target.host.endswith(".localhost"):
            raise _refused(f"{target.host} is not on the internet")
        if target.scheme == "http" and not self.allow_http:
            raise _refused("plain http is not allowed")
        if target.port < 1024 and target.port not in LOW_PORTS:
            raise _refused(f"port {target.port} is not allowed, of those below 1024 only 80 and 443 are")
        return target

    def admits(self, host: str, address: Address) -> bool:
        """May a connection for `host` go to this address?"""
        return self._trusts(host, address) or is_public(address)

    def _trusts(self, host: str, address: Address | None) -> bool:
        named = host in self.names or any(name.startswith("*.") and host.endswith(name[1:]) for name in self.names)
        return named or (address is not None and any(address in network for network in self.networks))


def is_public(address: Address) -> bool:
    """Unicast on the internet; an IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_V6:
            return False
    return not any(address in network for network in _NOT_PUBLIC)


def as_network(entry: str) -> Network | None:
    """A CIDR or an address of the allow-list; None for a name. Raises ValueError for something in between."""
    if ":" not in entry and not _NUMBER.fullmatch(entry.rpartition(".")[2].split("/")[0]):
        return None
    return ip_network(entry)


def _parse(url: str) -> Target:
    if len(url) > MAX_URL:
        raise _refused(f"it has {len(url)} characters, the limit is {MAX_URL}")
    match = _URL.fullmatch(url)
    if match is None or not _CHARACTERS.fullmatch(url):
        raise _refused("not an http or https URL in ASCII without a fragment")
    scheme, authority = match[1].lower(), match[2]
    if "@" in authority:
        raise _refused("a URL with a user name or password is not allowed")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise _refused(f"{authority[:64]!r} is not a host")
    port = int(parts[2]) if parts[2] else _default_port(scheme)
    if not 0 < port < 65536:
        raise _refused(f"there is no port {port}")
    target = match[3] if match[3].startswith("/") else f"/{match[3]}"
    return Target(scheme, _host(parts[1].lower()), port, target)


def _host(text: str) -> str:
    """Strict, so that nobody after us reads another host: 0177.0.0.1, 0x7f.1 and 2130706433 are 127.0.0.1 to some."""
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1]))
        host = text.removesuffix(".")
        labels = host.split(".")
        if _NUMBER.fullmatch(labels[-1]):
            return str(IPv4Address(host))
    except ValueError:
        raise _refused(f"{text[:64]!r} is not an address; write it as 192.0.2.1 or [2001:db8::1]") from None
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise _refused(f"{text[:64]!r} is not a host name; write international ones in their xn-- form")
    return host


def _literal(host: str) -> Address | None:
    return ip_address(host) if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]) else None


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(f"webhook_url: {reason}", param="webhook_url", hint=_HINT)
