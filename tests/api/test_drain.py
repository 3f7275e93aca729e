"""A node is taken out of nginx and HAProxy, and stopped, while people draw: no call fails, no job is made twice."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.api.app import create_app
from tests.api.balancers import Balancer, Node, balancer

Serving = Callable[[Any], AbstractAsyncContextManager[str]]
BODY = {"prompt": "a cat in a drained node", "size": "64x64", "num_inference_steps": 6, "cache": "skip"}
EACH = 3  # calls of each kind, at least, before, while and after


@dataclass
class People:
    """They call without a pause, each call on a connection of its own, and none tries anything twice."""

    client: httpx.AsyncClient
    made: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    leaving: bool = False
    seeds: Any = field(default_factory=itertools.count)

    async def draw(self) -> None:
        if (drawn := await self._send("/v1/images/generations", 200)) is not None:
            assert drawn.json()["data"]

    async def line_up_and_watch(self) -> None:
        if (accepted := await self._send("/v1/jobs", 202)) is None:
            return
        self.made.append(accepted.json()["id"])
        async with self.client.stream("GET", f"/v1/jobs/{self.made[-1]}/events") as stream:
            events = [line async for line in stream.aiter_lines() if line.startswith("event:")]
        assert events[-1].endswith("succeeded"), events

    async def keep(self, doing: Callable[[], Any]) -> None:
        while not self.leaving:
            await doing()

    async def go_on(self) -> None:
        """Returns when each kind of call was answered a few times more."""
        until = {path: count + EACH for path, count in self.calls.items()}
        async with asyncio.timeout(120):
            while any(self.calls[path] < count for path, count in until.items()):
                await asyncio.sleep(0.05)

    async def _send(self, path: str, expected: int) -> httpx.Response | None:
        answer = await self.client.post(path, json=BODY | {"seed": next(self.seeds)})
        self.calls[path] += 1
        if answer.status_code == expected:
            return answer
        self.refused.append(f"{path}: {answer.status_code} {answer.text[:200]}")
        return None


@asynccontextmanager
async def people(front: Balancer) -> AsyncIterator[People]:
    """Any error of theirs is one of the test's."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=front.url, timeout=120, limits=limits) as client:
        all_ = People(client, calls=Counter({"/v1/images/generations": 0, "/v1/jobs": 0}))
        doing = [all_.draw, all_.draw, all_.line_up_and_watch, all_.line_up_and_watch]
        async with asyncio.TaskGroup() as tasks:
            for one in doing:
                tasks.create_task(all_.keep(one))
            await all_.go_on()
            yield all_
            await all_.go_on()
            all_.leaving = True


async def drained(front: Balancer, node: Node, url: str) -> None:
    await front.drain(url)


async def found_out(front: Balancer, node: Node, url: str) -> None:
    """HAProxy asks: Ray Serve answers 503 on a node that it is about to leave."""
    node.draining = True
    async with asyncio.timeout(60):
        while not (row := (await front.servers())[0])["status"].startswith("DOWN") or row["scur"] != "0":
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("kind", "leave"),
    [("nginx", drained), ("haproxy", drained), ("haproxy", found_out)],
    ids=["nginx", "haproxy", "haproxy-finds-out"],
)
async def test_nobody_notices_that_a_node_goes(
    kind: str, leave: Callable[..., Any], service: Any, settings: Any, serving: Serving, tmp_path: Path
) -> None:
    one, two = (Node(create_app(service, service.assets, service.prompts, settings)) for _ in range(2))
    async with AsyncExitStack() as stack:
        going = await stack.enter_async_context(AsyncExitStack())
        first = await going.enter_async_context(serving(one))
        second = await stack.enter_async_context(serving(two))
        front = await stack.enter_async_context(balancer(kind, tmp_path, first, second))
        async with people(front) as all_:
            assert posts(one).total() > 0
            assert posts(two).total() > 0, "both are used"
            await leave(front, one, first)
            await going.aclose()
            before = posts(one)
            await all_.go_on()
            assert posts(one) == before
    assert all_.refused == []
    assert posts(one) + posts(two) == all_.calls, "each call was sent to one node, once"
    assert len(set(all_.made)) == all_.calls["/v1/jobs"], "each is a job of its own"


def posts(node: Node) -> Counter[str]:
    return Counter({path[5:]: count for path, count in node.seen.items() if path.startswith("POST ")})


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
async def test_half_open_connections_end_at_the_balancer(
    kind: str, service: Any, settings: Any, serving: Serving, tmp_path: Path
) -> None:
    node = Node(create_app(service, service.assets, service.prompts, settings))
    async with serving(node) as url, balancer(kind, tmp_path, url, head_s=1) as front, asyncio.timeout(60):
        said = await asyncio.gather(*(half_a_request(front.url, number) for number in range(20)))
    assert all(answer == b"" or answer.startswith(b"HTTP/1.1 408") for answer in said), said
    assert posts(node).total() == 0


async def half_a_request(url: str, number: int) -> bytes:
    """What comes until the other side closes."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: half" if number % 2 else b"")
    answer = await reader.read()
    writer.close()
    return answer
