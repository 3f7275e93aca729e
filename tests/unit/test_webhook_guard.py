"""What webhooks may call, said of URLs and of addresses."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from pydantic import ValidationError

from serve.errors import InvalidRequest
from serve.settings import WebhookSettings
from serve.webhooks.guard import Guard, is_public


def guard(**settings: object) -> Guard:
    return Guard.of(WebhookSettings(**settings))


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255", "168.63.129.16"),
        *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.19.0.1"),
        *("203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
        *("2001::1", "2001:db8::1", "3fff::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "100::1"),
    ],
)
def test_an_address_that_is_not_on_the_internet(address: str) -> None:
    assert not is_public(ip_address(address))
    shown = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidRequest, match="not on the internet") as refused:
        guard(allow_http=True).check(f"https://{shown}/")
    assert refused.value.param == "webhook_url"


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_an_address_on_the_internet(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        *("0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "017700000001", "127.1", "127.0.1", "1.2.3.4.5"),
        *(
            "127.0.0.1.",
            "256.1.1.1",
            "127.0.0.01",
            "0x",
            "a.0x7f",
            "[::1%25lo]",
            "[127.0.0.1]",
            "[::g]",
            "127.0.0.1%20",
        ),
        *("exa mple.org", "ex\tample.org", "bücher.example", "１２７.0.0.1", "a..b", "-a.org", ".", "a" * 64 + ".org"),
        *("example.org:0", "example.org:65536", "example.org:x", "example.org:22", "example.org:25", ""),
        *("user@example.org", "user:pass@example.org", "example.org@127.0.0.1", "example.org\\@127.0.0.1"),
        *("localhost", "LOCALHOST.", "a.localhost"),
    ],
)
def test_a_host_that_is_no_plain_public_one(host: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        guard().check(f"https://{host}/hook")
    assert refused.value.message.startswith("webhook_url: ")
    assert refused.value.hint


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org/", "ftp://example.org/", "file:///etc/passwd", "gopher://example.org", "//example.org"),
        *("example.org", "https:example.org", "https:///x", "", "https://example.org/#part", "https://example.org/\n"),
        *(
            "https://example.org/<x>",
            "https://example.org/" + "x" * 2048,
            " https://example.org/",
            "javascript:alert(1)",
        ),
    ],
)
def test_a_url_that_is_no_plain_https_one(url: str) -> None:
    with pytest.raises(InvalidRequest):
        guard().check(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("https://Example.org", "example.org", 443, "/", "example.org"),
        ("HTTPS://example.org./a/b?c=d&e=%20@:", "example.org", 443, "/a/b?c=d&e=%20@:", "example.org"),
        ("https://example.org?x", "example.org", 443, "/?x", "example.org"),
        ("https://xn--bcher-kva.example:8443/", "xn--bcher-kva.example", 8443, "/", "xn--bcher-kva.example:8443"),
        ("https://8.8.8.8:80/", "8.8.8.8", 80, "/", "8.8.8.8:80"),
        ("https://[2606:4700:0::1111]/", "2606:4700::1111", 443, "/", "[2606:4700::1111]"),
    ],
)
def test_a_good_url_is_taken_apart(url: str, host: str, port: int, target: str, authority: str) -> None:
    found = guard().check(url)
    assert (found.scheme, found.host, found.port, found.target) == ("https", host, port, target)
    assert found.authority == authority


def test_plain_http_is_for_those_who_ask_for_it() -> None:
    assert guard(allow_http=True).check("http://example.org/").port == 80
    with pytest.raises(InvalidRequest, match="plain http"):
        guard().check("http://example.org/")


def test_what_the_operator_allows_may_be_anywhere_on_any_port_in_plain_http() -> None:
    allowing = guard(allow=["hooks.internal", "*.corp.example", "10.2.0.0/16", "::1"])
    for host in ("hooks.internal:25", "a.b.corp.example", "10.2.3.4:9", "[::1]:8080"):
        allowing.check(f"http://{host}/")
    assert allowing.admits("hooks.internal", ip_address("10.9.9.9"))
    assert allowing.admits("example.org", ip_address("10.2.3.4"))
    assert not allowing.admits("example.org", ip_address("10.3.0.1"))
    assert not allowing.admits("other.internal", ip_address("10.9.9.9"))
    for host in ("corp.example", "evilcorp.example", "hooks.internal.example", "10.3.0.1"):
        with pytest.raises(InvalidRequest):
            allowing.check(f"http://{host}/")


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "300.1.1.1", "https://example.org", "a b", "", "*", "::1/129"])
def test_an_allowed_host_that_is_none_stops_the_start(entry: str) -> None:
    with pytest.raises(ValidationError, match="allow"):
        WebhookSettings(allow=[entry])
