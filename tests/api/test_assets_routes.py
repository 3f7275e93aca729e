import hashlib
import time

import httpx
import pytest
import pytest_asyncio

URL = "/v1/images/generations"


@pytest_asyncio.fixture(loop_scope="session")
async def link(client, fox) -> str:
    answer = (await client.post(URL, json=fox | {"response_format": "url", "output_format": "jpeg"})).json()
    return answer["data"][0]["url"]


async def test_bytes_and_their_headers(client, link):
    response = await client.get(link)
    assert response.status_code == 200
    assert response.content[:2] == b"\xff\xd8"
    assert response.headers["Content-Type"] == "image/jpeg"
    assert response.headers["ETag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'
    assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Disposition"].startswith("inline; filename=")


@pytest.mark.parametrize("range", [{}, {"Range": "bytes=0-1"}])
async def test_head_is_get_without_the_bytes(client, link, range):
    get = await client.get(link)
    head = await client.head(link, headers=range)
    assert head.status_code == 200
    assert head.content == b""
    for name in ("Content-Length", "Content-Type", "ETag", "Cache-Control"):
        assert head.headers[name] == get.headers[name]


async def test_head_through_a_real_server(base_url, client, link):
    async with httpx.AsyncClient(base_url=base_url) as remote:
        path = link.removeprefix("http://door")
        head, get = await remote.head(path), await remote.get(path)
    assert int(head.headers["Content-Length"]) == len(get.content)


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_an_unchanged_picture_is_not_sent_again(client, link, form):
    etag = (await client.get(link)).headers["ETag"]
    response = await client.get(link, headers={"If-None-Match": form.format(etag)})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == etag


async def test_another_etag_gets_the_picture(client, link):
    assert (await client.get(link, headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("0-1", slice(0, 2)),
        ("10-", slice(10, None)),
        ("-5", slice(-5, None)),
        ("5-99999999", slice(5, None)),
        ("-99999999", slice(None)),
    ],
)
async def test_a_range_is_a_part(client, link, asked, part):
    whole = (await client.get(link)).content
    response = await client.get(link, headers={"Range": f"bytes={asked}"})
    start, stop, _ = part.indices(len(whole))
    assert response.status_code == 206
    assert response.content == whole[part]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
    assert response.headers["Content-Length"] == str(len(response.content))


@pytest.mark.parametrize("asked", ["bytes=5-3", "bytes=-", "bytes=0-1,3-4", "items=0-1", "bytes=a-b", "bytes=0x1-2"])
async def test_what_is_not_one_range_is_ignored(client, link, asked):
    assert (await client.get(link, headers={"Range": asked})).status_code == 200


@pytest.mark.parametrize("asked", ["99999999-", "-0"])
async def test_a_range_outside_is_refused(client, refused, link, asked):
    whole = (await client.get(link)).content
    response = await client.get(link, headers={"Range": f"bytes={asked}"})
    refused(response, 416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{len(whole)}"


async def test_if_range_with_another_etag_gets_all(client, link):
    etag = (await client.get(link)).headers["ETag"]
    same = await client.get(link, headers={"Range": "bytes=0-1", "If-Range": etag})
    other = await client.get(link, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize("change", ["?expires=9999999999", "?expires=9999999999&signature=00", "?signature=ü"])
async def test_a_link_that_was_changed_is_refused(client, refused, link, change):
    refused(await client.get(link.partition("?")[0] + change), 403, "link_refused")


async def test_a_link_opens_no_other_picture(client, refused, link):
    refused(await client.get(link.replace("-0?", "-1?")), 403, "link_refused")


async def test_an_expired_link_is_refused(app, client, refused, link):
    asset_id = link.partition("?")[0].rpartition("/")[2]
    links = app.state.door.links
    expired = links.sign(asset_id, time.time() - links.ttl_s - 2)
    error = refused(await client.get(f"/v1/assets/{asset_id}?{expired}"), 403, "link_refused")
    assert "expired" in error["message"]


@pytest.mark.parametrize("asset_id", ["01K8Z3V7Q4M5N6P7R8S9T0VWXY-0", "..", "x", "..%2F..%2Fsecret"])
async def test_a_signed_link_to_nothing_is_not_found(app, client, refused, asset_id):
    signed = app.state.door.links.sign(asset_id.replace("%2F", "/"), time.time())
    refused(await client.get(f"/v1/assets/{asset_id}?{signed}"), 404, "not_found")
