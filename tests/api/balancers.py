"""Debian's nginx and HAProxy on the shipped files, with other addresses."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI

OPS = Path(__file__).parents[2] / "ops"
PATH = "/usr/sbin:/usr/bin:/usr/local/sbin"
SCRATCH = "\n".join(f"  {name}_temp_path PATH/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


HEAD_S = 30  # as shipped


@dataclass
class Node:
    """A Gateway behind Ray Serve's proxy, which answers `/-/healthz` itself: 503 while it drains."""

    app: FastAPI
    draining: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    clients: set[Any] = field(default_factory=set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/-/healthz":
            await send({"type": "http.response.start", "status": 503 if self.draining else 200, "headers": []})
            await send({"type": "http.response.body", "body": b"success"})
            return
        if scope["type"] == "http":
            self.seen[f"{scope['method']} {scope['path']}"] += 1
            self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
            self.clients.add(scope["client"])
        await self.app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Balancer:
    kind: str
    url: str
    folder: Path
    process: asyncio.subprocess.Process

    async def command(self, line: str) -> str:
        """To HAProxy's socket."""
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "admin.sock"))
        writer.write(line.encode() + b"\n")
        answer = await reader.read()
        writer.close()
        return answer.decode().strip()

    async def drain(self, node: str) -> None:
        """As docs/operations.md says. Returns when nothing that was sent to the node still runs."""
        address = node.removeprefix("http://")
        async with asyncio.timeout(60):
            if self.kind == "nginx":
                await self._mark_down(address)
            else:
                await self._drain_server(address)

    async def _mark_down(self, address: str) -> None:
        """nginx: the worker that had the old file ends with its last call."""
        file = self.folder / "nginx.conf"
        text = file.read_text()
        assert f"server {address} " in text
        file.write_text(text.replace(f"server {address} ", f"server {address} down "))
        old = psutil.Process(self.process.pid).children()
        self.process.send_signal(signal.SIGHUP)
        while any(worker.is_running() for worker in old):
            await asyncio.sleep(0.05)

    async def _drain_server(self, address: str) -> None:
        names = [row["svname"] for row in await self.servers() if row["addr"] == address]
        assert await self.command(f"set server zimage/{names[0]} state drain") == ""
        while any(row["scur"] != "0" for row in await self.servers() if row["addr"] == address):
            await asyncio.sleep(0.05)

    async def servers(self) -> list[dict[str, str]]:
        """HAProxy's statistics, a row for each server."""
        lines = (await self.command("show stat")).splitlines()
        columns = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines[1:]]
        return [row for row in rows if row["svname"].startswith("node")]


def nginx_config(folder: Path, port: int, nodes: list[str]) -> str:
    text = (OPS / "nginx.conf").read_text()
    servers = "\n".join(f"    server {node} max_fails=2 fail_timeout=5s;" for node in nodes)
    text, replaced = re.subn(r"^    server 127\.0\.0\.1:8000 .*$", servers, text, flags=re.MULTILINE)
    assert replaced == 1
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("20000", "500")
    text = text.replace("http {", f"http {{\n{SCRATCH.replace('PATH', str(folder))}", 1)
    user = "user root;" if os.getuid() == 0 else ""  # the folder is closed to others
    return f"daemon off; {user} worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n{text}"


def haproxy_config(folder: Path, port: int, nodes: list[str]) -> str:
    text = (OPS / "haproxy.cfg").read_text()
    servers = "\n".join(f"  server node{number} {node}" for number, node in enumerate(nodes, 1))
    text, replaced = re.subn(r"^  server node1 .*$", servers, text, flags=re.MULTILINE)
    assert replaced == 1
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("maxconn 20000", "maxconn 500")
    return text.replace("/run/haproxy/zimage.sock", f"{folder}/admin.sock")


@asynccontextmanager
async def balancer(kind: str, folder: Path, *nodes: str, head_s: int = HEAD_S) -> AsyncIterator[Balancer]:
    """In front of the nodes, which are `host:port`; ready when it answers at all. `head_s`: for a request's head."""
    program = shutil.which(kind, path=PATH)
    if program is None:
        pytest.skip(f"there is no {kind} here: make test-deps")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    file = folder / f"{kind}.conf"
    make = nginx_config if kind == "nginx" else haproxy_config
    text = make(folder, port, [node.removeprefix("http://") for node in nodes])
    patience = "client_header_timeout {}s;" if kind == "nginx" else "timeout http-request {}s"
    assert text.count(patience.format(HEAD_S)) == 1
    file.write_text(text.replace(patience.format(HEAD_S), patience.format(head_s)))
    options = ["-p", str(folder), "-c", str(file)] if kind == "nginx" else ["-db", "-f", str(file)]
    process = await asyncio.create_subprocess_exec(program, *options)
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(20), httpx.AsyncClient(base_url=url) as client:
            while not await answers(client):
                assert process.returncode is None, "it has ended"
                await asyncio.sleep(0.1)
        yield Balancer(kind, url, folder, process)
    finally:
        process.terminate()
        await process.wait()


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/healthz")).status_code == 200
    except httpx.TransportError:
        return False
