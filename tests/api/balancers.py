"""Debian's nginx and HAProxy on the shipped files, with other addresses."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

OPS = Path(__file__).parents[2] / "ops"
PATH = "/usr/sbin:/usr/bin:/usr/local/sbin"
SCRATCH = "\n".join(f"  {name}_temp_path PATH/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


@dataclass(frozen=True, slots=True)
class Balancer:
    url: str
    folder: Path

    async def command(self, line: str) -> str:
        """To HAProxy's socket."""
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "admin.sock"))
        writer.write(line.encode() + b"\n")
        answer = await reader.read()
        writer.close()
        return answer.decode().strip()


def nginx_config(folder: Path, port: int, nodes: list[str]) -> str:
    text = (OPS / "nginx.conf").read_text()
    servers = "\n".join(f"    server {node} max_fails=2 fail_timeout=5s;" for node in nodes)
    text, replaced = re.subn(r"^    server 127\.0\.0\.1:8000 .*$", servers, text, flags=re.MULTILINE)
    assert replaced == 1
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("20000", "500")
    text = text.replace("http {", f"http {{\n{SCRATCH.replace('PATH', str(folder))}", 1)
    return f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n{text}"


def haproxy_config(folder: Path, port: int, nodes: list[str]) -> str:
    text = (OPS / "haproxy.cfg").read_text()
    servers = "\n".join(f"  server node{number} {node}" for number, node in enumerate(nodes, 1))
    text, replaced = re.subn(r"^  server node1 .*$", servers, text, flags=re.MULTILINE)
    assert replaced == 1
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("maxconn 20000", "maxconn 500")
    return text.replace("/run/haproxy/zimage.sock", f"{folder}/admin.sock")


@asynccontextmanager
async def balancer(kind: str, folder: Path, *nodes: str) -> AsyncIterator[Balancer]:
    """In front of the nodes, which are `host:port`; ready when it answers at all."""
    program = shutil.which(kind, path=PATH)
    if program is None:
        pytest.skip(f"there is no {kind} here: make test-deps")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    file = folder / f"{kind}.conf"
    make = nginx_config if kind == "nginx" else haproxy_config
    file.write_text(make(folder, port, [node.removeprefix("http://") for node in nodes]))
    options = ["-p", str(folder), "-c", str(file)] if kind == "nginx" else ["-db", "-f", str(file)]
    process = await asyncio.create_subprocess_exec(program, *options)
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(20), httpx.AsyncClient(base_url=url) as client:
            while not await answers(client):
                assert process.returncode is None, "it has ended"
                await asyncio.sleep(0.1)
        yield Balancer(url, folder)
    finally:
        process.terminate()
        await process.wait()


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/healthz")).status_code == 200
    except httpx.TransportError:
        return False
