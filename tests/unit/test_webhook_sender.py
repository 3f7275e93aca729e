"""One POST, over real sockets: where it may go, and how long it may take."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
from starlette.responses import RedirectResponse, Response, StreamingResponse

from serve.settings import WebhookSettings
from serve.webhooks.retries import Answer
from serve.webhooks.sender import MAX_ANSWER, Resolve, Sender
from tests.unit.receiver import Receiver, receiving

LOOPBACK = ["127.0.0.1"]


@asynccontextmanager
async def sending(
    resolve: Resolve | None = None, tls: ssl.SSLContext | None = None, **settings: object
) -> AsyncIterator[Sender]:
    sender = Sender(WebhookSettings(**{"allow": LOOPBACK} | settings), resolve, tls)
    try:
        yield sender
    finally:
        await sender.close()


def resolving(*answers: list[str]) -> Resolve:
    """One answer after the other, the last one for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def test_the_body_arrives_as_it_was_given() -> None:
    async with receiving() as receiver, sending() as sender:
        answer = await sender.post(receiver.url("/a?b=c"), {"webhook-id": "msg_1"}, "☃".encode())
    (got,) = receiver.got
    assert answer == Answer(status=204)
    assert (got.path, got.body, got.headers["webhook-id"]) == ("/a", "☃".encode(), "msg_1")
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    targets = ["http://169.254.169.254/latest/meta-data/", "/elsewhere"]
    receiver = Receiver([lambda target=target: RedirectResponse(target, 307) for target in targets])
    async with receiving(receiver), sending() as sender:
        for _ in targets:
            assert await sender.post(receiver.url(), {}, b"{}") == Answer(status=307)
    assert [got.path for got in receiver.got] == ["/hook", "/hook"]


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["127.0.0.2"], ["::ffff:127.0.0.1"], ["8.8.8.8", "fd00:ec2::254"]])
async def test_a_name_that_leads_inside_is_refused_whatever_else_it_leads_to(addresses: list[str]) -> None:
    async with sending(resolving(addresses), allow=[], allow_http=True) as sender:
        answer = await sender.post("http://example.org/", {}, b"{}")
    assert answer == Answer(error="the host has an address that is not on the internet")


async def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_that_is_called() -> None:
    """DNS rebinding: the second answer, which would be a second resolution's, is the receiver's address."""
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["192.0.2.1"] if len(asked) == 1 else LOOPBACK

    async with (
        receiving() as receiver,
        sending(resolve, allow=["192.0.2.0/24"], allow_http=True, timeout_s=1) as sender,
    ):
        first = await sender.post(receiver.url(host="rebind.example"), {}, b"{}")
        second = await sender.post(receiver.url(host="rebind.example"), {}, b"{}")
    assert asked == ["rebind.example", "rebind.example"]
    assert first.status is None
    assert second == Answer(error="the host has an address that is not on the internet")
    assert receiver.got == []


async def test_every_attempt_resolves_and_checks_anew() -> None:
    async with receiving() as receiver, sending(resolving(LOOPBACK, ["10.0.0.1"]), allow_http=True) as sender:
        url = receiver.url(host="moving.example")
        answers = [await sender.post(url, {}, b"{}") for _ in range(2)]
    assert [answer.status for answer in answers] == [204, None]
    assert len(receiver.got) == 1


async def test_of_several_addresses_the_first_that_answers_is_taken() -> None:
    async with receiving() as receiver, sending(resolving(["::1", "127.0.0.1"]), allow=["a.example"]) as sender:
        assert (await sender.post(receiver.url(host="a.example"), {}, b"{}")).status == 204


async def test_a_host_that_is_no_longer_allowed_is_not_called() -> None:
    async with receiving() as receiver, sending(allow=[]) as sender:
        answer = await sender.post(receiver.url(), {}, b"{}")
    assert "not on the internet" in answer.error
    assert receiver.got == []


async def test_tls_asks_for_the_name_and_checks_its_certificate() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("hooks.example").configure_cert(server)
    authority.configure_trust(client)
    names: list[str | None] = []
    server.sni_callback = lambda _, name, __: names.append(name)
    async with receiving(ssl_context_factory=lambda *_: server) as receiver:
        async with sending(resolving(LOOPBACK), client) as sender:
            urls = [f"https://{name}.example:{receiver.port}/" for name in ("hooks", "other")]
            good, bad = [await sender.post(url, {}, b"{}") for url in urls]
        async with sending(resolving(LOOPBACK)) as sender:
            untrusted = await sender.post(urls[0], {}, b"{}")
    assert good.status == 204
    assert names == ["hooks.example", "other.example", "hooks.example"]
    assert receiver.got[0].headers["host"] == f"hooks.example:{receiver.port}"
    assert "certificate is not valid" in bad.error
    assert "certificate is not valid" in untrusted.error
    assert len(receiver.got) == 1


async def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    async with receiving() as receiver, sending(timeout_s=0.2) as sender:
        receiver.go.clear()
        assert await sender.post(receiver.url(), {}, b"{}") == Answer(error="no answer within 0.2 s")


async def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1024
            yield b"x" * 1024
            await asyncio.sleep(0)

    receiver = Receiver([lambda: StreamingResponse(endless(), 200)])
    async with receiving(receiver), sending(timeout_s=10) as sender:
        assert (await sender.post(receiver.url(), {}, b"{}")).status == 200
    assert sent < 1000 * MAX_ANSWER


async def test_a_name_without_an_address_and_a_closed_port_are_said() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with sending(nowhere) as sender:
        assert (await sender.post("https://nowhere.example/", {}, b"{}")).error == "the host has no address"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with sending() as sender:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
            assert (await sender.post(url, {}, b"{}")).error == "no connection"


async def test_the_system_resolves_names_where_nothing_else_is_said() -> None:
    async with receiving() as receiver, sending(allow=["localhost"]) as sender:
        assert (await sender.post(receiver.url(host="localhost"), {}, b"{}")).status == 204


@pytest.mark.parametrize(
    ("said", "seconds"), [("120", 120.0), ("soon", None), ("-1", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
async def test_retry_after_is_understood(said: str, seconds: float | None) -> None:
    receiver = Receiver([lambda: Response(status_code=503, headers={"Retry-After": said})])
    async with receiving(receiver), sending() as sender:
        assert await sender.post(receiver.url(), {}, b"{}") == Answer(status=503, retry_after_s=seconds)
