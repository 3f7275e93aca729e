"""What a caller is told of a quota, and that it holds."""

import httpx
import pytest

from serve.errors import ZImageError

JOBS = "/v1/jobs"
FOX = {"prompt": "a fox", "size": "64x64", "num_inference_steps": 1}
LIMITED = {"user": {"images_per_day": 3, "pixel_steps_per_day": 10**9}}


async def left(client: httpx.AsyncClient, headers: dict[str, str]) -> dict[str, int]:
    return {one["name"]: one["remaining"] for one in (await client.get("/v1/me", headers=headers)).json()["quota"]}


async def test_a_quota_counts_down_and_then_refuses(guarded, door, refused):
    async with guarded(roles=LIMITED) as service, door(service.app) as client:
        ada = service.headers("ada")
        answers = [await client.post(JOBS, json=FOX, headers=ada) for _ in range(3)]
        refusal = await client.post(JOBS, json=FOX, headers=ada)
        other = await client.post(JOBS, json=FOX, headers=service.headers("user"))
        unlimited = await client.post(JOBS, json=FOX, headers=service.headers("admin"))
        me = await left(client, ada)
    assert [answer.headers["x-ratelimit-remaining-images"] for answer in answers] == ["2", "1", "0"]
    assert answers[0].headers["RateLimit-Policy"].startswith('"images-per-day";q=3;w=86400, ')
    error = refused(refusal, 429, "quota_exceeded")
    assert "of 3 a day, of which 0 are left" in error["message"]
    assert 1 <= int(refusal.headers["Retry-After"]) <= 86400
    assert refusal.headers["x-ratelimit-limit-images"] == "3"
    assert refusal.headers["RateLimit"].startswith('"images-per-day";r=0;t=')
    assert (other.status_code, unlimited.status_code) == (202, 202)
    assert "RateLimit" not in unlimited.headers
    assert me == {"images-per-day": 0, "pixel-steps-per-day": 10**9 - 3 * 64 * 64}


async def test_more_than_a_whole_quota_is_told_so(guarded, door, refused):
    async with guarded(roles=LIMITED) as service, door(service.app) as client:
        body = FOX | {"n": 4}
        response = await client.post("/v1/images/generations", json=body, headers=service.headers("ada"))
    assert "more than the whole quota" in refused(response, 429, "quota_exceeded")["hint"]


async def test_a_repeated_key_is_answered_when_the_quota_is_spent(guarded, door):
    async with guarded(roles={"user": {"images_per_day": 1}}) as service, door(service.app) as client:
        headers = service.headers("ada") | {"Idempotency-Key": "k"}
        first, second = [await client.post(JOBS, json=FOX | {"seed": 1}, headers=headers) for _ in range(2)]
        assert (await client.post(JOBS, json=FOX, headers=service.headers("ada"))).status_code == 429
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["x-ratelimit-remaining-images"] == "0"


async def test_a_job_cancelled_in_the_queue_gives_its_quota_back(guarded, door):
    async with guarded(roles=LIMITED) as service, door(service.app) as client:
        ada = service.headers("ada")
        running, waiting = [(await client.post(JOBS, json=FOX, headers=ada)).json()["id"] for _ in range(2)]
        await service.until(running=1, queued=1)
        await client.post(f"{JOBS}/{waiting}/cancel", headers=ada)
        after_waiting = (await left(client, ada))["images-per-day"]
        await client.post(f"{JOBS}/{running}/cancel", headers=ada)
        await service.until(running=0, queued=0)
        after_running = (await left(client, ada))["images-per-day"]
    assert (after_waiting, after_running) == (2, 2)


async def test_a_failed_job_gives_its_quota_back(guarded, door):
    async with guarded(ZImageError("it failed"), roles=LIMITED) as service, door(service.app) as client:
        ada = service.headers("ada")
        response = await client.post(JOBS, json=FOX, headers=ada | {"Prefer": "wait=20"})
        assert response.json()["status"] == "failed"
        assert (await left(client, ada))["images-per-day"] == 3


@pytest.mark.parametrize("users", [{"ada": {"images_per_day": 1}}])
async def test_a_user_may_have_another_quota_than_the_role(guarded, door, users):
    async with guarded(roles=LIMITED, users=users) as service, door(service.app) as client:
        statuses = [(await client.post(JOBS, json=FOX, headers=service.headers("ada"))).status_code for _ in range(2)]
    assert statuses == [202, 429]
