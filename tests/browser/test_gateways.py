"""Two Gateways in turns behind nginx: no click cares which one it meets."""

import asyncio
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from serve.api.app import create_app
from tests.browser.conftest import draw

CONF = """
daemon off; master_process off; pid PATH/pid; error_log PATH/error.log;
events {}
http {
  access_log off; proxy_temp_path PATH/proxy; client_body_temp_path PATH/body;
  fastcgi_temp_path PATH/f; uwsgi_temp_path PATH/u; scgi_temp_path PATH/s;
  upstream gateways { server FIRST; server SECOND; }
  map $http_upgrade $connection_upgrade { default upgrade; '' close; }
  server {
    listen 127.0.0.1:PORT;
    location / {
      proxy_pass http://gateways; proxy_http_version 1.1; proxy_buffering off; proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    }
  }
}
"""


class Counted:
    """An app, and the HTTP requests that it answered."""

    def __init__(self, app, name: str, counts: Counter[str]) -> None:
        self.app, self.name, self.counts = app, name, counts

    async def __call__(self, scope, receive, send) -> None:
        self.counts[self.name] += scope["type"] == "http"
        await self.app(scope, receive, send)


@asynccontextmanager
async def nginx(folder: Path, first: str, second: str) -> AsyncIterator[str]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("there is no nginx here: make test-deps")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    names = {"PATH": str(folder), "PORT": str(port), "FIRST": first, "SECOND": second}
    conf = CONF
    for name, value in names.items():
        conf = conf.replace(name, value.removeprefix("http://"))
    (folder / "nginx.conf").write_text(conf)
    process = await asyncio.create_subprocess_exec(program, "-c", folder / "nginx.conf", "-p", folder)
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=7)) as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200
        yield url
    finally:
        process.terminate()
        await process.wait()


async def test_a_picture_is_made_kept_and_deleted_over_two_gateways(service, settings, tmp_path, serving, visit):
    counts: Counter[str] = Counter()
    one, two = [
        Counted(create_app(service, service.assets, service.prompts, settings), name, counts) for name in ("one", "two")
    ]
    async with (
        serving(one) as first,
        serving(two) as second,
        nginx(tmp_path, first, second) as url,
        visit(url) as page,
    ):
        await draw(page, "a whale on a blue background")
        card = page.locator(".card").first
        await expect(card).to_contain_text("a whale")
        await expect(card.locator(".state.succeeded")).to_be_visible()
        assert await card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
        await page.reload()
        await expect(card).to_contain_text("a whale")
        await page.get_by_role("button", name="Gallery").click()
        await page.get_by_role("button", name="a whale on a blue background").first.click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("dialog", name="Delete", exact=True).get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("dialog")).to_have_count(0)
    assert min(counts["one"], counts["two"]) > 5
