import asyncio
import base64
import re

import httpx
import pytest
from ulid import ULID

from serve.api.app import create_app
from serve.assets.local import LocalAssets
from serve.errors import NotFound, ReplicaLost
from serve.messages import ImageRequest, Submission

URL = "/v1/jobs"
LONG = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 50, "n": 4}
UNKNOWN = "01K8Z3V7Q4M5N6P7R8S9T0VWXY"
KEYS = {
    "id",
    "object",
    "status",
    "status_seq",
    "created_at",
    "started_at",
    "completed_at",
    "expires_at",
    "model",
    "request",
    "progress",
    "queue",
    "result",
    "timings",
    "error",
    "attempt",
    "parent_id",
    "webhook",
    "preset",
    "urls",
}


async def drawn(client: httpx.AsyncClient, body: dict) -> dict:
    response = await client.post(URL, json=body, headers={"Prefer": "wait=60"})
    assert response.status_code == 200, response.text
    assert response.json()["status"] == "succeeded"
    return response.json()


async def test_a_job_is_accepted_at_once_and_says_where_it_is(client, fox):
    response = await client.post(URL, json=fox)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == job["urls"]["self"] == f"http://door/v1/jobs/{job['id']}"
    assert set(job) == KEYS
    assert (job["object"], job["model"], job["attempt"], job["parent_id"]) == ("image.job", "z-image-turbo", 1, None)
    assert job["status"] in {"queued", "running"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", job["created_at"])


async def test_waiting_brings_the_finished_job(client, fox):
    job = (await client.post(URL, json=fox | {"deadline_ms": 60_000})).json()
    done = (await client.get(f"{URL}/{job['id']}", params={"wait": 60})).json()
    assert set(done) == KEYS
    assert (done["status"], done["error"], done["queue"]) == ("succeeded", None, None)
    assert done["progress"] == {"step": 8, "steps": 8, "fraction": 1.0}
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] < done["expires_at"]
    assert done["status_seq"] > job["status_seq"]
    assert set(done["timings"]) == {"queue_ms", "encode_ms", "denoise_ms", "decode_ms", "total_ms"}
    assert done["timings"]["denoise_ms"] > 0
    [image] = done["result"]["images"]
    assert set(image) - {"deleted"} == {
        "asset_id",
        "url",
        "thumbnail_url",
        "seed",
        "width",
        "height",
        "format",
        "bytes",
    }
    assert len((await client.get(image["url"])).content) == image["bytes"]


async def test_its_picture_is_the_one_of_the_synchronous_call(client, fox):
    plain = (await client.post("/v1/images/generations", json=fox)).json()["data"][0]["b64_json"]
    [image] = (await drawn(client, fox))["result"]["images"]
    assert (await client.get(image["url"])).content == base64.b64decode(plain)


async def test_the_resolved_request_can_be_sent_again(client, fox):
    del fox["seed"]
    job = await drawn(client, fox | {"quality": "low", "output_format": "webp", "n": 2, "guidance_scale": 2})
    again = await drawn(client, job["request"])
    assert again["request"] == job["request"]
    assert (job["request"]["num_inference_steps"], job["request"]["priority"]) == (4, "standard")
    first, second = job["result"]["images"]
    assert (second["seed"], second["format"]) == (first["seed"] + 1, "webp")


async def test_a_preferred_wait_ends_when_its_time_has_come(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        response = await client.post(URL, json=fox, headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "wait=1"
    assert response.json()["status"] == "running"


async def test_a_longer_preference_is_cut_to_a_minute(client, fox):
    response = await client.post(URL, json=fox, headers={"Prefer": "wait=3600"})
    assert (response.status_code, response.headers["Preference-Applied"]) == (200, "wait=60")


async def test_a_job_lives_on_when_its_submitter_leaves(base_url, client, fox):
    prompt = f"a fox that nobody waits for {ULID()}"
    async with httpx.AsyncClient(base_url=base_url) as leaving:
        with pytest.raises(httpx.ReadTimeout):
            await leaving.post(URL, json=LONG | {"prompt": prompt}, headers={"Prefer": "wait=60"}, timeout=0.3)
    [job] = (await client.get(URL, params={"q": prompt})).json()["data"]
    assert job["status"] in {"queued", "running"}
    await asyncio.sleep(0.2)
    left = (await client.get(job["urls"]["self"])).json()
    assert left["status"] in {"queued", "running", "succeeded"}
    await client.post(job["urls"]["cancel"])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", " ", "blank"),
        ("previews", 4, "got 4"),
        ("n", 11, "got 11"),
        ("size", "1024x1024", "over this model's 256"),
        ("preset", "portrait", "unknown preset"),
    ],
)
async def test_a_bad_field_is_named(client, refused, fox, field, value, says):
    error = refused(await client.post(URL, json=fox | {field: value}), 400, "invalid_value")
    assert error["param"] == field
    assert says in error["message"]
    assert error["hint"]


async def test_fields_of_the_synchronous_call_are_ignored_and_named(client, fox):
    response = await client.post(URL, json=fox | {"stream": True, "response_format": "url", "webhook_url": None})
    assert response.status_code == 202
    assert response.headers["X-Ignored-Parameters"] == "stream, response_format"


async def test_a_full_queue_refuses_jobs(stuck, door, refused, fox):
    async with stuck(queue={"max_depth": 1}) as service, door(service.app) as client:
        await client.post(URL, json=fox)
        await service.until(running=1)
        assert (await client.post(URL, json=fox)).json()["queue"]["position"] == 1
        refused(await client.post(URL, json=fox), 503, "queue_full")


async def test_a_full_store_is_said_before_a_job_is_taken(service, settings, door, refused, fox, tmp_path):
    full = create_app(service, LocalAssets(tmp_path, min_free_bytes=1 << 62), service.prompts, settings)
    async with door(full) as client:
        refused(await client.post(URL, json=fox), 507, "store_full")


async def test_a_failed_job_shows_its_error(stuck, door, fox):
    async with stuck(ReplicaLost("lost too often", hint="ask the operator")) as service, door(service.app) as client:
        job = (await client.post(URL, json=fox, headers={"Prefer": "wait=10"})).json()
    assert (job["status"], job["result"]) == ("failed", None)
    assert job["error"] == {
        "message": "lost too often",
        "type": "server_error",
        "param": None,
        "code": "replica_lost",
        "hint": "ask the operator",
    }


async def test_a_job_past_its_deadline_has_expired(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        job = (await client.post(URL, json=fox | {"deadline_ms": 100}, headers={"Prefer": "wait=10"})).json()
    assert (job["status"], job["error"]["code"]) == ("expired", "deadline_exceeded")


async def test_a_waiting_job_is_cancelled_at_once_and_for_good(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        await client.post(URL, json=fox)
        await service.until(running=1)
        job = (await client.post(URL, json=fox)).json()
        first, second = [await client.post(job["urls"]["cancel"]) for _ in range(2)]
    assert (first.status_code, first.json()["status"]) == (200, "canceled")
    assert (second.status_code, second.json()) == (200, first.json())


async def test_a_running_job_is_cancelled_at_its_next_step(client, service):
    job = (await client.post(URL, json=LONG)).json()
    while (await service.status()).running == 0:
        await asyncio.sleep(0.01)
    response = await client.post(job["urls"]["cancel"])
    assert (response.status_code, response.json()["status"]) in {(202, "canceling"), (200, "canceled")}
    ended = (await client.get(job["urls"]["self"], params={"wait": 10})).json()
    assert (ended["status"], ended["result"]) == ("canceled", None)


async def test_cancelling_what_has_ended_changes_nothing(client, fox):
    job = await drawn(client, fox)
    response = await client.post(job["urls"]["cancel"])
    assert (response.status_code, response.json()["status"]) == (200, "succeeded")


async def test_a_deleted_job_is_gone_with_its_pictures(client, service, refused, fox):
    job = await drawn(client, fox | {"n": 2, "previews": 2})
    response = await client.delete(job["urls"]["self"])
    assert (response.status_code, response.content) == (204, b"")
    refused(await client.get(job["urls"]["self"]), 404, "not_found")
    for image in job["result"]["images"]:
        refused(await client.get(image["url"]), 404, "not_found")
        with pytest.raises(NotFound):
            await service.assets.stat(image["asset_id"])
    assert await service.assets.read_preview(f"{job['id']}/0-0") is None


async def test_deleting_a_running_job_stops_it(client, service, refused):
    job = (await client.post(URL, json=LONG)).json()
    while (await service.status()).running == 0:
        await asyncio.sleep(0.01)
    assert (await client.delete(job["urls"]["self"])).status_code == 204
    refused(await client.get(job["urls"]["self"]), 404, "not_found")
    async with asyncio.timeout(5):
        while (await service.status()).running:
            await asyncio.sleep(0.01)
    assert not list(service.assets._images.rglob(f"{job['id']}*"))


async def test_a_rerun_is_the_same_picture_by_another_job(client, fox):
    parent = await drawn(client, fox)
    response = await client.post(f"{parent['urls']['self']}/rerun", headers={"Prefer": "wait=60"})
    job = response.json()
    assert (response.status_code, job["parent_id"]) == (200, parent["id"])
    assert job["request"] == parent["request"]
    pictures = [(await client.get(each["result"]["images"][0]["url"])).content for each in (parent, job)]
    assert pictures[0] == pictures[1]


async def test_a_rerun_may_change_what_it_likes(client, refused, fox):
    parent = await drawn(client, fox)
    rerun = f"{parent['urls']['self']}/rerun"
    response = await client.post(rerun, json={"quality": "low", "size": "64x64", "seed": None})
    changed = response.json()["request"]
    assert response.status_code == 202
    assert (changed["num_inference_steps"], changed["size"], changed["prompt"]) == (4, "64x64", fox["prompt"])
    assert changed["seed"] != fox["seed"]
    assert refused(await client.post(rerun, json={"size": "1x1"}), 400, "invalid_value")["param"] == "size"


async def test_a_list_is_newest_first_in_pages(client, fox):
    mark = str(ULID())
    made = [(await client.post(URL, json=fox | {"prompt": f"{mark} {i}"})).json()["id"] for i in range(5)]
    pages, cursor = [], None
    while not pages or cursor:
        page = (
            await client.get(URL, params={"q": mark.lower(), "limit": 2} | ({"cursor": cursor} if cursor else {}))
        ).json()
        assert (page["object"], page["has_more"]) == ("list", page["next_cursor"] is not None)
        pages.append([job["id"] for job in page["data"]])
        cursor = page["next_cursor"]
    assert pages == [made[:2:-1], made[2:0:-1], made[:1]]


async def test_a_list_can_be_narrowed_to_some_statuses(client, fox):
    mark = str(ULID())
    job = await drawn(client, fox | {"prompt": mark})
    for status, found in (("succeeded", [job["id"]]), ("failed,succeeded", [job["id"]]), ("queued", [])):
        page = (await client.get(URL, params={"q": mark, "status": status})).json()
        assert [each["id"] for each in page["data"]] == found


@pytest.mark.parametrize(
    ("path", "param"),
    [
        (f"{URL}?limit=0", "limit"),
        (f"{URL}?limit=201", "limit"),
        (f"{URL}?limit=x", "limit"),
        (f"{URL}?status=done", "status"),
        (f"{URL}?cursor=1", "cursor"),
        (f"{URL}?q=%00", "q"),
        (f"{URL}/{UNKNOWN}?wait=61", "wait"),
        (f"{URL}/{UNKNOWN}/events?after=-1", "after"),
    ],
)
async def test_a_bad_parameter_is_named(client, refused, path, param):
    error = refused(await client.get(path), 400, "invalid_value")
    assert error["param"] == param
    assert error["hint"]


@pytest.mark.parametrize("job_id", [UNKNOWN, UNKNOWN.lower(), "x", "%00"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/rerun"), ("GET", "/events")]
)
async def test_an_unknown_job_is_not_found(client, refused, job_id, method, path):
    assert refused(await client.request(method, f"{URL}/{job_id}{path}"), 404, "not_found")["param"] == "job_id"


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel")])
async def test_another_users_job_is_not_found(client, service, refused, method, path):
    request = ImageRequest(model="z-image-turbo", prompt="a fox", width=64, height=64, steps=1, seed=1)
    job_id = await service.submit(Submission(job_id=str(ULID()), request=request, prompt_tokens=12, user="ada"))
    refused(await client.request(method, f"{URL}/{job_id}{path}"), 404, "not_found")
    assert job_id not in (await client.get(URL)).text


async def test_the_queue_shows_what_waits_and_what_is_mine(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        first, second = [(await client.post(URL, json=fox)).json()["id"] for _ in range(2)]
        await service.until(running=1, queued=1)
        queue = (await client.get("/v1/queue")).json()
    assert set(queue) == {
        *("object", "depth", "running", "paused", "replicas", "estimated_wait_seconds", "models", "my_jobs")
    }
    assert (queue["depth"], queue["running"], queue["replicas"]) == (1, 1, 1)
    assert [(job["id"], job["status"]) for job in queue["my_jobs"]] == [(second, "queued"), (first, "running")]
    assert queue["my_jobs"][0]["queue"]["position"] == 1
