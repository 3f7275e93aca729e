"""Whose pictures may be begun with, what they cost, and what is left of them."""

from __future__ import annotations

import base64
import io

from PIL import Image

from serve.messages import JobQuery


def b64(colour: str = "navy") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def test_what_anothers_job_begins_with_is_unknown(guarded, door, refused):
    async with guarded() as service, door(service.app) as client:

        async def begun(name: str, image: str):
            body = {"prompt": "a fox", "image": image, "seed": 1}
            return await client.post("/v1/jobs", json=body, headers=service.headers(name))

        mine = (await begun("ada", b64())).json()["request"]["image"]
        shown = f"/v1/inputs/{mine.removeprefix('input:')}"
        for name in ("user", "preset_only", "viewer"):
            told = refused(await client.get(shown, headers=service.headers(name)), 404, "not_found")
            assert told["message"] == f"no input picture {mine.removeprefix('input:')!r}"
        refused(await begun("user", mine), 404, "not_found")
        refused(await begun("viewer", mine), 403, "forbidden")
        for name in ("ada", "admin"):
            assert (await client.get(shown, headers=service.headers(name))).status_code == 200
            assert (await begun(name, mine)).status_code == 202
        assert (await begun("user", b64())).json()["request"]["image"] == mine, "who has the picture may send it"
        assert (await client.get(shown, headers=service.headers("user"))).status_code == 200


async def test_the_input_of_a_deleted_job_is_unknown(guarded, door, refused):
    async with guarded() as service, door(service.app) as client:
        ada = service.headers("ada")
        sent = await client.post("/v1/jobs", json={"prompt": "a fox", "image": b64("red")}, headers=ada)
        job, image = sent.json()["id"], sent.json()["request"]["image"]
        await client.delete(f"/v1/jobs/{job}", headers=ada)
        refused(await client.get(f"/v1/inputs/{image.removeprefix('input:')}", headers=ada), 404, "not_found")


async def test_a_quota_counts_the_steps_that_are_taken(guarded, door, refused):
    async with guarded(roles={"user": {"pixel_steps_per_day": 64 * 64 * 10}}) as service, door(service.app) as client:
        body = {"prompt": "a fox", "image": b64(), "strength": 0.5, "num_inference_steps": 8}
        answers = [await client.post("/v1/jobs", json=body, headers=service.headers("user")) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        used = (await service.dispatcher.usage("user")).day
    assert (used.images, used.pixel_steps) == (2, 2 * 64 * 64 * 4)


async def test_inputs_of_jobs_that_wait_are_there_after_a_restart(stuck, door):
    async with stuck() as service, door(service.app) as client:
        sent = await client.post("/v1/jobs", json={"prompt": "a fox", "image": b64("green"), "strength": 0.3})
        name = sent.json()["request"]["image"].removeprefix("input:")
        waiting = sent.json()["id"]
    async with stuck() as service, door(service.app) as client:
        (job,) = await service.dispatcher.find(JobQuery(input=name))
        assert (job.id, job.request.image, job.request.strength) == (waiting, name, 0.3)
        assert (await client.get(f"/v1/inputs/{name}")).status_code == 200
