import asyncio

import httpx
import pytest
from ulid import ULID

URL = "/v1/jobs"
GENERATIONS = "/v1/images/generations"
LONG = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 50}


@pytest.fixture
def key() -> dict[str, str]:
    return {"Idempotency-Key": str(ULID())}


@pytest.mark.parametrize("path", [URL, GENERATIONS])
async def test_the_same_key_and_body_are_one_job(client, fox, key, path):
    del fox["seed"]
    first, second = [await client.post(path, json=fox, headers=key | {"Prefer": "wait=60"}) for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200)
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    if path == URL:
        assert second.json()["id"] == first.json()["id"]
    else:
        assert second.json()["data"] == first.json()["data"]
        assert second.headers["X-Seed"] == first.headers["X-Seed"]
        assert second.headers["X-Job-Id"] == first.headers["X-Job-Id"]


async def test_two_at_once_are_one_job(client, fox, key):
    both = await asyncio.gather(*(client.post(URL, json=fox, headers=key) for _ in range(2)))
    assert sorted(response.status_code for response in both) == [200, 202]
    assert both[0].json()["id"] == both[1].json()["id"]


async def test_a_body_is_compared_by_what_it_asks_for(client, fox, key):
    first = await client.post(URL, json=fox, headers=key)
    explicit = {"size": "128x128", "n": 1, "model": "dall-e-3", "priority": "standard", "user": "x"}
    second = await client.post(URL, json=fox | explicit, headers=key)
    assert (first.status_code, second.status_code) == (202, 200)


@pytest.mark.parametrize("change", [{"seed": 2}, {"seed": None}, {"previews": 1}, {"priority": "batch"}])
async def test_the_same_key_with_another_body_is_refused(client, refused, fox, key, change):
    await client.post(URL, json=fox, headers=key)
    refused(await client.post(URL, json=fox | change, headers=key), 422, "idempotency_key_reused")


async def test_keys_differ_by_case(client, fox, key):
    other = {"Idempotency-Key": key["Idempotency-Key"].lower()}
    ids = {(await client.post(URL, json=fox, headers=headers)).json()["id"] for headers in (key, other)}
    assert len(ids) == 2


@pytest.mark.parametrize("bad", ["", "a b", "a" * 256, "é"])
@pytest.mark.parametrize("path", [URL, GENERATIONS])
async def test_a_bad_key_is_refused(client, refused, fox, path, bad):
    response = await client.post(path, json=fox, headers={"Idempotency-Key": bad.encode()})
    error = refused(response, 400, "invalid_value")
    assert error["param"] == "Idempotency-Key"
    assert "255" in error["message"]


async def test_who_leaves_a_call_with_a_key_finds_it_again(base_url, client, key):
    async with httpx.AsyncClient(base_url=base_url) as leaving:
        with pytest.raises(httpx.ReadTimeout):
            await leaving.post(GENERATIONS, json=LONG, headers=key, timeout=0.3)
    response = await client.post(GENERATIONS, json=LONG, headers=key)
    assert response.status_code == 200
    assert response.headers["Idempotency-Replayed"] == "true"


async def test_a_time_out_with_a_key_leaves_the_job_alone(stuck, door, refused, fox, key):
    async with stuck(timeouts={"request_s": 0.1, "heartbeat_s": 60}) as service, door(service.app) as client:
        error = refused(await client.post(GENERATIONS, json=fox, headers=key), 503, "request_timeout")
        await service.until(running=1)
    assert "goes on" in error["message"]


async def test_a_stream_is_replayed_with_its_previews(client, fox, key):
    body = fox | {"stream": True, "partial_images": 2}
    first, second = [await client.post(GENERATIONS, json=body, headers=key) for _ in range(2)]
    assert first.text.count("event: image_generation.partial_image") == 2
    assert second.text == first.text
