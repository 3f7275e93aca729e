"""How the page at `/` is served; what it does is in tests/browser."""

import re

import httpx
import pytest

from serve.api.page import FOLDER, files


async def test_a_browser_gets_the_page_and_everything_that_it_names(client):
    page = await client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    paths = re.findall(r'(?:src|href)="\.(/[^"]+)"', page.text)
    assert len(paths) > 10
    for path in paths:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert "http" not in page.text


@pytest.mark.parametrize(
    "accept", ["application/json", "application/json, text/html;q=0.9", "application/problem+json"]
)
async def test_a_client_of_the_api_is_told_in_json_that_this_is_no_route(client, accept):
    answer = await client.get("/", headers={"Accept": accept})
    assert answer.status_code == 404
    assert "json" in answer.headers["Content-Type"]


async def test_nothing_of_it_may_run_but_its_own_files(client):
    policy = (await client.get("/")).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    page = (await client.get("/")).text
    assert page.count("<style>") == 1
    assert "'sha256-" in policy
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", (FOLDER / "index.html").read_text())


@pytest.mark.parametrize("path", ["/", "/ui/app.js"])
async def test_it_is_asked_for_each_time_and_sent_once(client, path):
    answer = await client.get(path)
    assert answer.headers["Cache-Control"] == "no-cache"
    again = await client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await client.head(path)
    assert (head.status_code, head.content, head.headers["ETag"]) == (200, b"", answer.headers["ETag"])


async def test_another_version_is_kept_by_nobody(client):
    """Two Gateways of which one is older: the page works, and the next load is whole again."""
    current, other = await client.get("/ui/app.js"), await client.get("/ui/0123456789abcdef/app.js")
    assert other.content == current.content
    assert other.headers["Cache-Control"] == "no-store"


async def test_packed_or_not_it_is_the_same(client):
    packed = await client.get("/ui/app.js", headers={"Accept-Encoding": "gzip"})
    plain = await client.get("/ui/app.js", headers={"Accept-Encoding": "identity"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert packed.content == plain.content == (FOLDER / "app.js").read_bytes()


@pytest.mark.parametrize("path", ["/ui/none.js", "/ui/", "/ui/..%2fpage.py", "/ui/page.py", "/ui/x/page.py", "/ui/x/"])
async def test_there_is_nothing_else(client, path):
    answer: httpx.Response = await client.get(path)
    assert answer.status_code == 404


def test_every_file_has_a_type():
    assert {path.name for path in FOLDER.iterdir()} == set(files())


def test_every_module_is_asked_for_at_once():
    """Else the browser finds them one after the other."""
    page = (FOLDER / "index.html").read_text()
    assert page.index("style.css") < page.index("modulepreload") < page.index("<script")
    assert {path.name for path in FOLDER.glob("*.js")} == set(re.findall(r'(?:href|src)="\./ui/(\w+\.js)"', page))
