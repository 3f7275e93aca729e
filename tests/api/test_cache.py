"""Identical requests through the API, over the embedded model: drawn once, each answered with pictures of its own."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from ulid import ULID

from serve.api.app import create_app
from serve.errors import InvalidRequest
from serve.local import LocalService, open_service

GENERATIONS, JOBS = "/v1/images/generations", "/v1/jobs"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def caching(settings, tmp_path_factory) -> AsyncIterator[LocalService]:
    changes = {"data": tmp_path_factory.mktemp("cache"), "cache": settings.cache.model_copy(update={"enabled": True})}
    async with open_service(settings.model_copy(update=changes)) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cached(
    caching,
    settings,
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(caching, caching.assets, caching.prompts, settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door", timeout=60) as client:
        yield client


@pytest.fixture
def wish() -> dict[str, object]:
    return {"prompt": f"a fox {ULID()}", "seed": 1, "num_inference_steps": 2}


async def generated(client: httpx.AsyncClient, body: dict[str, object], **headers: str) -> httpx.Response:
    answer = await client.post(GENERATIONS, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def test_the_second_time_is_a_hit_with_the_same_bytes_and_ids_of_its_own(cached, wish):
    first, second = [await generated(cached, wish) for _ in range(2)]
    assert [answer.headers["X-Cache"] for answer in (first, second)] == ["miss", "hit"]
    one, two = first.json()["data"][0], second.json()["data"][0]
    assert one["b64_json"] == two["b64_json"]
    assert second.headers["X-Asset-Id"] == two["asset_id"] == f"{two['job_id']}-0" != one["asset_id"]
    assert second.json() | {"created": 0, "data": 0} == first.json() | {"created": 0, "data": 0}


async def test_a_hit_in_every_form(cached, wish):
    picture = base64.b64decode((await generated(cached, wish)).json()["data"][0]["b64_json"])
    raw = await generated(cached, wish, Accept="image/png")
    link = (await generated(cached, wish | {"response_format": "url"})).json()["data"][0]["url"]
    stream = await generated(cached, wish | {"stream": True, "partial_images": 2})
    [completed] = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: ")]
    assert raw.content == (await cached.get(link)).content == base64.b64decode(completed["b64_json"]) == picture
    assert raw.headers["X-Cache"] == stream.headers["X-Cache"] == "hit"


async def test_a_job_is_answered_with_its_result_at_once(cached, wish):
    drawn = (await cached.post(JOBS, json=wish, headers={"Prefer": "wait=60"})).json()
    answer = await cached.post(JOBS, json=wish)
    job = answer.json()
    assert answer.status_code == 202
    assert (job["status"], job["result"]["cache"], drawn["result"]["cache"]) == ("succeeded", "hit", "miss")
    assert job["progress"]["fraction"] == 1.0
    assert (await cached.get(f"{JOBS}/{job['id']}")).json()["result"]["cache"] == "hit"
    events = (await cached.get(f"{JOBS}/{job['id']}/events")).text
    assert events.count("event: job.succeeded") == 1
    listed = {each["id"] for each in (await cached.get(JOBS)).json()["data"]}
    assert {job["id"], drawn["id"]} <= listed


async def test_many_at_once_are_drawn_once(cached, wish):
    answers = await asyncio.gather(*(generated(cached, wish | {"num_inference_steps": 30}) for _ in range(16)))
    assert sorted(answer.headers["X-Cache"] for answer in answers) == ["join"] * 15 + ["miss"]
    pictures = [answer.json()["data"][0] for answer in answers]
    assert len({picture["b64_json"] for picture in pictures}) == 1
    assert len({picture["asset_id"] for picture in pictures}) == 16


async def test_a_stream_that_joins_says_so(cached, wish):
    body = wish | {"stream": True, "partial_images": 2, "num_inference_steps": 30}
    answers = await asyncio.gather(*(generated(cached, body) for _ in range(2)))
    assert sorted(answer.headers["X-Cache"] for answer in answers) == ["join", "miss"]
    assert all(answer.text.count("event: image_generation.completed") == 1 for answer in answers)


async def test_without_a_seed_nothing_is_reused(cached, wish):
    del wish["seed"]
    answers = await asyncio.gather(*(generated(cached, wish) for _ in range(2)))
    assert [answer.headers["X-Cache"] for answer in answers] == ["miss", "miss"]
    seed = int(answers[0].headers["X-Seed"])
    assert (await generated(cached, wish | {"seed": seed})).headers["X-Cache"] == "miss"


async def test_skip_draws_anew_and_its_result_is_kept(cached, wish):
    uses = [await generated(cached, wish | {"cache": cache}) for cache in ("skip", "auto", "skip")]
    assert [answer.headers["X-Cache"] for answer in uses] == ["miss", "hit", "miss"]


async def test_a_hit_survives_the_deletion_of_the_job_that_drew_it(cached, wish):
    drawn = (await cached.post(JOBS, json=wish, headers={"Prefer": "wait=60"})).json()
    hit = (await cached.post(JOBS, json=wish)).json()
    assert (await cached.delete(drawn["urls"]["self"])).status_code == 204
    assert (await cached.get(hit["result"]["images"][0]["url"])).status_code == 200
    again = (await cached.post(JOBS, json=wish, headers={"Prefer": "wait=60"})).json()
    assert again["result"]["cache"] == "miss"


async def test_an_idempotency_key_names_one_job_also_on_a_hit(cached, wish):
    await generated(cached, wish)
    key = {"Idempotency-Key": str(ULID())}
    first, second = [await generated(cached, wish, **key) for _ in range(2)]
    assert first.headers["X-Cache"] == second.headers["X-Cache"] == "hit"
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert second.headers["Idempotency-Replayed"] == "true"


async def test_a_missing_picture_is_said_and_the_others_are_there(cached, caching, wish, monkeypatch):
    write = caching.assets.write

    async def fail_the_second(asset_id, *rest):
        if asset_id.endswith("-1"):
            raise InvalidRequest("the second one cannot be kept", hint="ask for one")
        await write(asset_id, *rest)

    monkeypatch.setattr(caching.assets, "write", fail_the_second)
    plain = (await generated(cached, wish | {"n": 3})).json()
    job = (await cached.post(JOBS, json=wish | {"n": 3}, headers={"Prefer": "wait=60"})).json()
    assert [image["seed"] for image in plain["data"]] == [1, 3]
    assert plain["usage"]["output_tokens"] == 2 * 64
    assert (job["status"], job["result"]["cache"]) == ("succeeded", "miss")
    assert [image["seed"] for image in job["result"]["images"]] == [1, 3]
    for answer in (plain, job["result"]):
        assert answer["partial"] is True
        [missing] = answer["errors"]
        assert (missing["image"], missing["seed"], missing["error"]["code"]) == (1, 2, "invalid_value")
