"""One POST to somebody else's server: to an address that was checked, within a time, without believing the answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any

import httpcore2
import structlog

from serve.errors import InvalidRequest
from serve.settings import WebhookSettings
from serve.webhooks.guard import Guard, Target
from serve.webhooks.retries import Answer

log = structlog.get_logger()

MAX_ANSWER = 16 * 1024  # bytes of a body that are read, and thrown away, so that a connection ends politely
MAX_ADDRESSES = 4
CONNECT_S = 5.0

Resolve = Callable[[str, int], Awaitable[list[str]]]


class AddressRefused(Exception):
    """A name leads to an address that is not on the internet, and not allowed."""


class Sender:
    """`resolve` gives the addresses of a name as texts, or raises OSError."""

    def __init__(
        self,
        settings: WebhookSettings,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._guard = Guard.of(settings)
        self._timeout_s = settings.timeout_s
        self._dns = ThreadPoolExecutor(settings.concurrency, "webhook-dns")  # a slow answer blocks nobody else
        # Not through httpx2, which has no place for a network backend, would follow HTTP_PROXY, and parse the URL anew.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=settings.concurrency,
            max_keepalive_connections=0,  # every attempt resolves and checks
            network_backend=_Guarded(self._guard, resolve or self._resolve),
        )

    async def close(self) -> None:
        await self._pool.aclose()
        self._dns.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        try:
            target = self._guard.check(url)  # again: the settings may have changed since the job was taken in
            headers = {"Host": target.authority, "Content-Length": str(len(body)), **headers}
            async with asyncio.timeout(self._timeout_s):
                return await self._post(target, headers, body)
        except InvalidRequest as error:
            return Answer(error=error.message)
        except AddressRefused:
            return Answer(error="the host has an address that is not on the internet")
        except TimeoutError:
            return Answer(error=f"no answer within {self._timeout_s:g} s")
        except socket.gaierror:
            return Answer(error="the host has no address")
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError) as error:
            return Answer(error=_reason(error))

    async def _post(self, target: Target, headers: dict[str, str], body: bytes) -> Answer:
        scheme, host, path = (part.encode() for part in (target.scheme, target.host, target.target))
        url = httpcore2.URL(scheme=scheme, host=host, port=target.port, target=path)
        async with self._pool.stream("POST", url, headers=list(headers.items()), content=body) as response:
            answer = Answer(status=response.status, retry_after_s=_retry_after(response.headers))
            size = 0
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > MAX_ANSWER:
                    break
            return answer

    async def _resolve(self, host: str, port: int) -> list[str]:
        look_up = asyncio.get_running_loop().run_in_executor
        found = await look_up(self._dns, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        return [str(address[0]) for *_, address in found]


class _Guarded(httpcore2.AsyncNetworkBackend):
    """Connects to the very addresses that it has checked: nobody resolves the name a second time."""

    def __init__(self, guard: Guard, resolve: Resolve) -> None:
        self._guard = guard
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the sender has one for the whole attempt
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        for address in addresses:  # one that is wrong condemns all: who mixes them is up to something
            if not self._guard.admits(host, ip_address(address)):
                log.warning("a webhook was refused", host=host, address=address)
                raise AddressRefused
        failure: Exception = socket.gaierror(socket.EAI_NONAME, "no address")
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._network.connect_tcp(address, port, CONNECT_S, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _reason(error: Exception) -> str:
    """Without a word of what the other side said: its answer is nothing for the job's owner to read."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "no TLS connection"
    if isinstance(error, httpcore2.ConnectError | httpcore2.ConnectTimeout):
        return "no connection"
    return "the connection broke"


def _retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    """Seconds from now, said as a number or as a date."""
    said = next((value.decode("latin-1").strip() for name, value in headers if name.lower() == b"retry-after"), "")
    if said.isascii() and said.isdecimal() and len(said) < 10:
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
