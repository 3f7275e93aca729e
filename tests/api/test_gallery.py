"""Your pictures over HTTP: the list, thumbnails, metadata, and what is left of a job when they are deleted."""

import asyncio
import hashlib
import json

import httpx
import pytest
import pytest_asyncio
from ulid import ULID

from serve.access.caller import Caller
from serve.api.app import create_app
from serve.assets.local import LocalAssets
from serve.errors import StoreFull

GENERATE, ASSETS = "/v1/images/generations", "/v1/assets"


@pytest_asyncio.fixture(loop_scope="session")
async def clean(client):
    """No pictures of earlier tests, some of which leave jobs that still run."""
    while (queue := (await client.get("/v1/queue")).json())["depth"] + queue["running"]:
        await asyncio.sleep(0.05)
    while assets := (await listed(client, limit=200))["data"]:
        await client.post(f"{ASSETS}/delete", json={"ids": [asset["id"] for asset in assets]})


async def listed(client, **query):
    response = await client.get(ASSETS, params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def drawn(client, prompt="a red fox on a yellow background", **wish) -> list[str]:
    """Asset ids."""
    answer = await client.post(GENERATE, json={"prompt": prompt, "size": "64x64", "num_inference_steps": 1} | wish)
    assert answer.status_code == 200, answer.text
    return [image["asset_id"] for image in answer.json()["data"]]


def path(url: str) -> str:
    return url.removeprefix("http://door")


@pytest.fixture(scope="module")
def nobody(app, service, settings):
    """The same service behind the door of another user."""
    other = create_app(service, service.assets, service.prompts, settings)

    async def somebody_else(connection: object) -> Caller:
        return Caller(user="somebody else", role="user", via="key")

    other.state.door.access.caller = somebody_else
    return httpx.AsyncClient(transport=httpx.ASGITransport(other), base_url="http://door")


async def test_the_gallery_is_newest_first_and_comes_in_pages(client, clean):
    (first,), second = await drawn(client, seed=1), await drawn(client, n=2, seed=2)
    page = await listed(client, limit=2)
    assert [asset["id"] for asset in page["data"]] == second
    assert (page["object"], page["has_more"], page["next_cursor"]) == ("list", True, second[1])
    rest = await listed(client, limit=2, cursor=page["next_cursor"])
    assert [asset["id"] for asset in rest["data"]] == [first]
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)


async def test_a_page_that_ends_within_a_job_goes_on_there(client, clean):
    ids = await drawn(client, n=3)
    page = await listed(client, limit=1)
    rest = await listed(client, cursor=page["next_cursor"])
    assert [asset["id"] for asset in page["data"] + rest["data"]] == ids


async def test_pictures_are_searched_by_their_prompt_without_case(client, clean):
    (fox,), _ = await drawn(client, "a red FOX"), await drawn(client, "a 100% cat")
    assert [asset["id"] for asset in (await listed(client, q="fox"))["data"]] == [fox]
    assert (await listed(client, q="dog"))["data"] == []
    assert len((await listed(client, q="0%"))["data"]) == 1


async def test_a_listed_picture_says_how_it_is_drawn_again(client, clean):
    *_, second = await drawn(client, n=2, seed=7)
    shown = next(asset for asset in (await listed(client))["data"] if asset["id"] == second)
    assert (shown["object"], shown["seed"], shown["width"], shown["num_inference_steps"]) == ("image.asset", 8, 64, 1)
    one, other = await client.get(path(shown["url"])), await drawn(client, seed=8)
    assert one.content == (await client.get(f"{ASSETS}/{other[0]}")).content
    assert (await client.get(path(shown["job_url"]))).json()["id"] == shown["job_id"]


@pytest.mark.parametrize("query", [{"cursor": "x"}, {"cursor": str(ULID())}, {"limit": 0}, {"limit": 201}, {"q": "\0"}])
async def test_a_wrong_query_is_named(client, refused, query):
    error = refused(await client.get(ASSETS, params=query), 400, "invalid_value")
    assert error["param"] in query


async def test_a_thumbnail_is_small_webp_and_not_sent_twice(client, picture):
    (asset_id,) = await drawn(client, size="256x128")
    (big,) = await drawn(client, size="128x256")
    for made, size in ((asset_id, (256, 128)), (big, (128, 256))):
        response = await client.get(f"{ASSETS}/{made}/thumbnail")
        image = picture(response.content)
        assert (image.format, image.size, response.headers["Content-Type"]) == ("WEBP", size, "image/webp")
    again = await client.get(f"{ASSETS}/{big}/thumbnail", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await client.get(f"{ASSETS}/{big}/thumbnail")).content == response.content


async def test_a_thumbnail_link_opens_only_the_thumbnail(client, refused):
    await drawn(client)
    (shown,) = (await listed(client, limit=1))["data"]
    assert (await client.get(path(shown["thumbnail_url"]))).status_code == 200
    refused(await client.get(path(shown["thumbnail_url"]).replace("/thumbnail", "")), 403, "link_refused")
    refused(await client.get(path(shown["url"]).replace("?", "/thumbnail?")), 403, "link_refused")


async def test_metadata_says_what_was_drawn_for_whom_by_what(client):
    *_, second = await drawn(client, "a red fox", n=2, seed=3)
    shown = (await client.get(f"{ASSETS}/{second}/metadata")).json()
    data = (await client.get(f"{ASSETS}/{second}")).content
    assert (shown["asset_id"], shown["bytes"]) == (second, len(data))
    assert shown["sha256"] == hashlib.sha256(data).hexdigest()
    said = shown["metadata"]
    assert (said["prompt"], said["user"], said["weights"]) == ("a red fox", "anonymous", "embedded")
    assert said["engine"].startswith("zimage-serve ")
    assert (said["request"]["seed"], said["request"]["n"], said["job_id"]) == (4, 1, second[:26])


async def test_the_picture_itself_says_how_it_was_drawn(client, picture):
    for format in ("png", "jpeg", "webp"):
        (asset_id,) = await drawn(client, "a ☃ fox", seed=3, output_format=format)
        image = picture((await client.get(f"{ASSETS}/{asset_id}")).content)
        if format == "png":
            text = image.text["parameters"]
        else:
            text = image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
        assert text.startswith("a ☃ fox\nSteps: 1, ")
        assert ", Seed: 3, Size: 64x64, Model: z-image-turbo" in text


async def test_the_same_request_has_the_same_bytes(client):
    ids = [(await drawn(client, seed=3))[0] for _ in range(2)]
    one, other = [(await client.get(f"{ASSETS}/{id}")).content for id in ids]
    assert one == other


async def test_deleting_one_leaves_a_truthful_job(client, refused):
    first, second = await drawn(client, n=2)
    (shown,) = [asset for asset in (await listed(client))["data"] if asset["id"] == first]
    await client.get(path(shown["thumbnail_url"]))
    assert (await client.delete(f"{ASSETS}/{first}")).status_code == 204
    for url in (shown["url"], shown["thumbnail_url"], f"{ASSETS}/{first}", f"{ASSETS}/{first}/metadata"):
        refused(await client.get(path(url)), 404, "not_found")
    refused(await client.delete(f"{ASSETS}/{first}"), 404, "not_found")
    images = (await client.get(path(shown["job_url"]))).json()["result"]["images"]
    assert [(image["asset_id"], image["url"] is None, image["deleted"]) for image in images] == [
        (first, True, True),
        (second, False, False),
    ]
    assert (await client.get(path(images[1]["url"]))).status_code == 200


async def test_a_deleted_picture_is_gone_from_the_disk(client, settings, picture):
    (asset_id,) = await drawn(client, seed=987_654)
    await client.get(f"{ASSETS}/{asset_id}/thumbnail")
    sha256 = (await client.get(f"{ASSETS}/{asset_id}/metadata")).json()["sha256"]
    assert list((settings.data / "assets").rglob(sha256))
    await client.delete(f"{ASSETS}/{asset_id}")
    assert not list((settings.data / "assets").rglob(f"*{asset_id}*"))
    assert not list((settings.data / "assets").rglob(sha256))


async def test_events_and_repetitions_of_a_job_say_that_its_picture_is_gone(client, refused):
    headers, body = {"Idempotency-Key": str(ULID())}, {"prompt": "a fox", "size": "64x64"}
    answer = (await client.post(GENERATE, json=body, headers=headers)).json()["data"][0]
    await client.delete(f"{ASSETS}/{answer['asset_id']}")
    events = (await client.get(f"/v1/jobs/{answer['job_id']}/events")).text
    data = json.loads(events.split("data: ")[1].split("\n")[0])["data"]
    assert data["result"]["images"][0]["url"] is None
    error = refused(await client.post(GENERATE, json=body, headers=headers), 404, "not_found")
    assert "deleted" in error["message"]


async def test_many_are_deleted_at_once_and_the_unknown_are_named(client, clean):
    ids = [(await drawn(client))[0] for _ in range(3)]
    unknown = [f"{ULID()}-0", "../x"]
    answer = await client.post(f"{ASSETS}/delete", json={"ids": [ids[0], *unknown, ids[1], ids[0]]})
    assert answer.json() == {"object": "asset.deletion", "deleted": ids[:2], "unknown": unknown}
    assert [asset["id"] for asset in (await listed(client))["data"]] == [ids[2]]


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": ["x"] * 1001}, {"ids": "x"}, {"ids": [1]}])
async def test_a_wrong_list_of_ids_is_named(client, refused, body):
    assert refused(await client.post(f"{ASSETS}/delete", json=body), 400, "invalid_value")["param"] == "ids"


async def test_all_are_deleted_only_by_who_knows_how_many(client, refused, clean):
    for _ in range(2):
        await drawn(client)
    assert refused(await client.delete(ASSETS), 400, "invalid_value")["param"] == "all"
    for wrong in ({}, {"confirm": 1}, {"confirm": 3}):
        error = refused(await client.delete(ASSETS, params={"all": True} | wrong), 400, "invalid_value")
        assert (error["param"], "confirm=2" in error["hint"]) == ("confirm", True)
    assert len((await listed(client))["data"]) == 2
    answer = await client.delete(ASSETS, params={"all": True, "confirm": 2})
    assert answer.json() == {"object": "asset.deletion", "deleted_count": 2}
    assert (await listed(client))["data"] == []


async def test_nobody_sees_or_deletes_another_users_pictures(client, nobody, refused):
    (asset_id,) = await drawn(client)
    assert (await listed(nobody))["data"] == []
    for url in (f"{ASSETS}/{asset_id}", f"{ASSETS}/{asset_id}/thumbnail", f"{ASSETS}/{asset_id}/metadata"):
        refused(await nobody.get(url), 404, "not_found")
    refused(await nobody.delete(f"{ASSETS}/{asset_id}"), 404, "not_found")
    answer = await nobody.post(f"{ASSETS}/delete", json={"ids": [asset_id]})
    assert (answer.json()["deleted"], answer.json()["unknown"]) == ([], [asset_id])
    assert (await nobody.delete(ASSETS, params={"all": True, "confirm": 0})).json()["deleted_count"] == 0
    assert (await client.get(f"{ASSETS}/{asset_id}")).status_code == 200


async def test_a_damaged_picture_is_an_error_that_says_so(client, refused, settings):
    (asset_id,) = await drawn(client, seed=456_789)
    (file,) = (settings.data / "assets").rglob(f"{asset_id}.png")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    response = await client.get(f"{ASSETS}/{asset_id}")
    error = refused(response, 500, "asset_corrupted")
    assert asset_id in error["message"]
    assert response.headers["x-should-retry"] == "false"
    refused(await client.get(f"{ASSETS}/{asset_id}/thumbnail"), 500, "asset_corrupted")


async def test_a_job_whose_picture_finds_no_room_fails_and_says_so(client, service, refused, monkeypatch, fox):
    monkeypatch.setattr(LocalAssets, "_write", _full)
    error = refused(await client.post(GENERATE, json=fox), 507, "store_full")
    assert "full" in error["message"]


def _full(*_):
    raise StoreFull("the asset store is full", hint="free disk space", retry_after=60)


async def test_deleting_a_job_takes_its_pictures(client, refused):
    first, second = await drawn(client, n=2)
    assert (await client.delete(f"/v1/jobs/{first[:26]}")).status_code == 204
    for asset_id in (first, second):
        refused(await client.get(f"{ASSETS}/{asset_id}"), 404, "not_found")
    assert first not in [asset["id"] for asset in (await listed(client))["data"]]
