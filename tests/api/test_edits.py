"""Pictures that begin with another: OpenAI's client, JSON, jobs, and everything that is wrong with a file."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI
from PIL import Image

from serve.api import input_images
from serve.inputs import source

PROMPT = "a red fox on a yellow background"


def file(
    width: int = 96, height: int = 64, mode: str = "RGB", colour: Any = "navy", format: str = "PNG", **how: Any
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, format, **how)
    return buffer.getvalue()


def half_see_through(width: int = 96, height: int = 64) -> bytes:
    """The right half is to be drawn."""
    image = Image.new("RGBA", (width, height), "navy")
    image.paste((0, 0, 0, 0), (width // 2, 0, width, height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_openais_client_edits_a_picture(openai: AsyncOpenAI, picture) -> None:
    answer = await openai.images.edit(
        model="gpt-image-1", image=("in.png", file()), prompt=PROMPT, n=2, extra_body={"seed": 3, "strength": 0.5}
    )
    assert [picture(one.b64_json).size for one in answer.data] == [(96, 64), (96, 64)]
    assert answer.usage.input_tokens_details.image_tokens == 24
    assert answer.size == "96x64"


async def test_openais_client_sends_a_list_of_one_and_a_mask(openai: AsyncOpenAI, picture) -> None:
    answer = await openai.images.edit(image=[file()], mask=half_see_through(), prompt=PROMPT, size="128x64")
    assert picture(answer.data[0].b64_json).size == (128, 64)


async def test_a_stream_of_an_edit_has_its_own_events(openai: AsyncOpenAI) -> None:
    stream = await openai.images.edit(
        image=file(), prompt=PROMPT, stream=True, partial_images=1, extra_body={"strength": 1}
    )
    types = [event.type async for event in stream]
    assert types == ["image_edit.partial_image", "image_edit.completed"]


async def test_two_pictures_are_refused(openai: AsyncOpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="twice") as refusal:
        await openai.images.edit(image=[file(), file()], prompt=PROMPT)
    assert refusal.value.param == "image"


async def test_a_form_and_json_give_the_same_bytes(client: httpx.AsyncClient) -> None:
    form = {"prompt": PROMPT, "seed": "5", "strength": "0.4", "num_inference_steps": "4"}
    sent = await client.post("/v1/images/edits", data=form, files={"image": file()})
    json = {"prompt": PROMPT, "seed": 5, "strength": 0.4, "num_inference_steps": 4}
    url = f"data:image/png;base64,{b64(file())}"
    for body in (json | {"image": b64(file())}, json | {"image": url}, json | {"images": [{"image_url": url}]}):
        other = await client.post("/v1/images/edits", json=body)
        assert other.json()["data"][0]["b64_json"] == sent.json()["data"][0]["b64_json"], other.text
    plain = await client.post("/v1/images/generations", json=json | {"image": url})
    assert plain.json()["data"][0]["b64_json"] == sent.json()["data"][0]["b64_json"]


async def test_where_a_mask_keeps_the_picture_it_stays(client: httpx.AsyncClient, picture) -> None:
    sent = await client.post(
        "/v1/images/edits", data={"prompt": PROMPT, "seed": "1"}, files={"image": half_see_through()}
    )
    drawn = picture(sent.json()["data"][0]["b64_json"])
    assert all(abs(a - b) < 60 for a, b in zip(drawn.getpixel((8, 32)), (0, 0, 128), strict=True))
    assert any(abs(a - b) > 60 for a, b in zip(drawn.getpixel((88, 32)), (0, 0, 128), strict=True))


async def test_a_white_mask_is_the_same_as_a_transparent_one(client: httpx.AsyncClient) -> None:
    white = Image.new("L", (96, 64))
    white.paste(255, (48, 0, 96, 64))
    buffer = io.BytesIO()
    white.save(buffer, "PNG")
    answers = [
        await client.post(
            "/v1/images/edits", data={"prompt": PROMPT, "seed": "1"}, files={"image": file(), "mask": mask}
        )
        for mask in (buffer.getvalue(), half_see_through())
    ]
    assert answers[0].json()["data"][0]["b64_json"] == answers[1].json()["data"][0]["b64_json"]


async def test_a_job_takes_fewer_steps_and_says_what_it_began_with(client: httpx.AsyncClient) -> None:
    body = {"prompt": PROMPT, "image": b64(file()), "strength": 0.6, "num_inference_steps": 8, "seed": 2}
    job = (await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})).json()
    assert job["status"] == "succeeded", job
    assert job["progress"] == {"step": 5, "steps": 5, "fraction": 1.0}
    assert job["request"]["strength"] == 0.6
    assert job["request"]["num_inference_steps"] == 8
    began = job["request"]["image"]
    shown = await client.get(f"/v1/inputs/{began.removeprefix('input:')}")
    assert Image.open(io.BytesIO(shown.content)).getpixel((0, 0)) == (0, 0, 128)
    again = await client.get(shown.url, headers={"If-None-Match": shown.headers["ETag"]})
    assert again.status_code == 304
    metadata = (await client.get(f"/v1/assets/{job['id']}-0/metadata")).json()["metadata"]
    assert metadata["request"]["image"] == began.removeprefix("input:")
    assert metadata["request"]["strength"] == 0.6
    listed = (await client.get("/v1/assets")).json()["data"][0]
    assert (listed["id"], listed["image"], listed["strength"]) == (f"{job['id']}-0", began, 0.6)


async def test_a_rerun_begins_with_the_same_picture_or_another(client: httpx.AsyncClient) -> None:
    body = {"prompt": PROMPT, "image": b64(half_see_through()), "mask": b64(half_see_through()), "seed": 2}
    first = (await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})).json()
    rerun = f"/v1/jobs/{first['id']}/rerun"
    again = (await client.post(rerun, headers={"Prefer": "wait=60"})).json()
    assert again["request"] == first["request"]
    assert await _bytes(client, again) == await _bytes(client, first)
    asset = f"asset:{first['id']}-0"
    other = (await client.post(rerun, json={"image": asset}, headers={"Prefer": "wait=60"})).json()
    assert (other["request"]["mask"], other["request"]["strength"]) == (None, 0.6)
    assert other["request"]["image"] not in (None, first["request"]["image"])
    none = (await client.post(rerun, json={"image": None}, headers={"Prefer": "wait=60"})).json()
    assert (none["request"]["image"], none["request"]["strength"], none["status"]) == (None, None, "succeeded")


async def _bytes(client: httpx.AsyncClient, job: dict[str, Any]) -> bytes:
    return (await client.get(f"/v1/assets/{job['id']}-0")).content


async def test_without_a_size_a_picture_is_drawn_in_its_own(client: httpx.AsyncClient) -> None:
    for own, drawn in (((100, 75), "96x64"), ((640, 400), "256x160"), ((30, 20), "96x64")):
        body = {"prompt": PROMPT, "image": b64(file(*own)), "strength": 0.1}
        assert (await client.post("/v1/images/edits", json=body)).json()["size"] == drawn


def animated() -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


BAD = {
    "animated": (animated(), "animated: it has 2 frames"),
    "cut short": (file(200, 200, format="JPEG")[:-200], "cut short or damaged"),
    "no picture": (b"%PDF-1.7 and so on", "not a PNG, JPEG or WebP"),
    "empty": (b"", "not a PNG, JPEG or WebP"),
    "gif": (file(format="GIF"), "not a PNG, JPEG or WebP"),
    "bomb": (file(9000, 9000, "1", 0), "the limit is 50000000"),
    "huge bomb": (file(16000, 16000, "1", 0), "the limit is 50000000"),
    "long": (file(200, 50), "over 3:1"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_file_is_refused_clearly(client: httpx.AsyncClient, refused, kind: str) -> None:
    data, reason = BAD[kind]
    for param in ("image", "mask"):
        if (kind, param) == ("long", "mask"):
            continue
        beside = {"image": file()} if param == "mask" else {}
        files = beside | {param: data}
        error = refused(
            await client.post("/v1/images/edits", data={"prompt": PROMPT}, files=files), 400, "invalid_value"
        )
        assert (error["param"], reason in error["message"], bool(error["hint"])) == (param, True, True), error


BAD_FIELDS = {
    "no image": ({}, "image", "required"),
    "a URL": ({"image": "https://example.com/fox.png"}, "image", "URLs are not fetched"),
    "not base64": ({"image": "a fox!"}, "image", "not base64"),
    "another mask": ({"image": b64(file()), "mask": b64(file(64, 64))}, "mask", "mask is 64x64, image is 96x64"),
    "nothing to draw": ({"image": b64(file()), "mask": b64(file(mode="L", colour=0))}, "mask", "nothing to draw"),
    "strength": ({"image": b64(file()), "strength": 0}, "strength", "greater than or equal to 0.01"),
    "two images": ({"images": [{"image_url": "x"}, {"image_url": "x"}]}, "images", "not a list of one"),
    "a file id": ({"images": [{"file_id": "file-1"}]}, "images", "no image_url"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
async def test_a_bad_field_is_refused_clearly(client: httpx.AsyncClient, refused, case: str) -> None:
    fields, param, reason = BAD_FIELDS[case]
    error = refused(await client.post("/v1/images/edits", json={"prompt": PROMPT} | fields), 400, "invalid_value")
    assert (error["param"], reason in error["message"]) == (param, True), error


@pytest.mark.parametrize("image", [f"asset:{'0' * 26}-0", "asset:x", f"input:{'0' * 64}", "input:x"])
async def test_what_is_not_yours_is_unknown(client: httpx.AsyncClient, refused, image: str) -> None:
    body = {"prompt": PROMPT, "image": image}
    assert refused(await client.post("/v1/jobs", json=body), 404, "not_found")["param"] == "image"


async def test_a_mask_alone_is_refused_and_a_strength_alone_ignored(client: httpx.AsyncClient, refused) -> None:
    alone = await client.post("/v1/jobs", json={"prompt": PROMPT, "mask": b64(file())})
    assert refused(alone, 400, "invalid_value")["param"] == "mask"
    body = {"prompt": PROMPT, "strength": 0.5, "num_inference_steps": 1}
    ignored = await client.post("/v1/images/generations", json=body)
    assert ignored.headers["X-Ignored-Parameters"] == "strength"


async def test_pictures_count_apart_from_the_body(client: httpx.AsyncClient, refused, settings) -> None:
    noise = io.BytesIO()
    Image.effect_noise((800, 800), 100).save(noise, "PNG")
    assert len(noise.getvalue()) > settings.limits.body_bytes
    body = {"prompt": PROMPT, "image": b64(noise.getvalue()), "strength": 0.1}
    assert (await client.post("/v1/images/generations", json=body)).status_code == 200
    long = {"prompt": "a" * settings.limits.body_bytes}
    refused(await client.post("/v1/images/generations", json=long), 413, "body_too_large")
    refused(await client.post("/v1/images/edits", json=body | long), 413, "body_too_large")


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Content-Type": "multipart/form-data"}, b"--x--"),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc'),
        (BOUNDARY, b"nonsense"),
        (BOUNDARY, b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n"),
        (BOUNDARY, b""),
    ],
    ids=["no boundary", "cut short", "nonsense", "no name", "empty"],
)
async def test_a_broken_form_is_refused(client: httpx.AsyncClient, refused, headers, content) -> None:
    refused(await client.post("/v1/images/edits", content=content, headers=headers), 400, "invalid_value")


async def test_a_field_of_a_form_has_its_type(client: httpx.AsyncClient, refused) -> None:
    for name, value in (("n", "two"), ("stream", "perhaps"), ("strength", "1e3")):
        form = {"prompt": PROMPT, name: value}
        sent = await client.post("/v1/images/edits", data=form, files={"image": file()})
        assert refused(sent, 400, "invalid_value")["param"] == name


async def test_an_idempotency_key_stands_for_the_picture_too(client: httpx.AsyncClient, refused) -> None:
    headers = {"Idempotency-Key": "edit-1"}
    form = {"prompt": PROMPT, "seed": "1", "strength": "0.2"}
    first = await client.post("/v1/images/edits", data=form, files={"image": file()}, headers=headers)
    again = await client.post("/v1/images/edits", data=form, files={"image": file()}, headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["X-Job-Id"] == first.headers["X-Job-Id"]
    other = await client.post("/v1/images/edits", data=form, files={"image": file(colour="red")}, headers=headers)
    refused(other, 422, "idempotency_key_reused")


async def test_the_event_loop_goes_on_while_a_picture_is_decoded(client: httpx.AsyncClient, monkeypatch) -> None:
    threads = list[threading.Thread]()

    def decoded(*given, **how):
        threads.append(threading.current_thread())
        return source(*given, **how)

    monkeypatch.setattr(input_images, "source", decoded)
    body = {"prompt": PROMPT, "image": b64(file()), "strength": 0.1}
    assert (await client.post("/v1/images/edits", json=body)).status_code == 200
    assert threads
    assert threading.current_thread() not in threads


async def test_models_say_that_they_take_pictures(client: httpx.AsyncClient, settings) -> None:
    model = (await client.get("/v1/models/z-image-turbo")).json()
    assert model["input_modalities"] == ["text", "image"]
    assert model["image_input"]["max_bytes"] == settings.limits.image_bytes


async def test_kserve_takes_a_picture_as_a_parameter(client: httpx.AsyncClient, picture) -> None:
    given = {"image": b64(half_see_through()), "mask": b64(half_see_through()), "strength": 0.9}
    url = "/v2/models/z-image-turbo/generate"
    flat = await client.post(url, json={"prompt": PROMPT, "seed": 5, "steps": 8} | given)
    plain = await client.post("/v1/images/edits", json={"prompt": PROMPT, "seed": 5} | given)
    assert flat.status_code == plain.status_code == 200, flat.text
    assert Image.open(io.BytesIO(base64.b64decode(flat.json()["image_bytes"]))).size == (96, 64)
    assert flat.json()["image_bytes"] == plain.json()["data"][0]["b64_json"]
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [2, 1], "data": [PROMPT, PROMPT]}]
    infer = url.replace("generate", "infer")
    rows = await client.post(
        infer, json={"inputs": inputs, "parameters": {"image": f"asset:{plain.json()['data'][0]['asset_id']}"}}
    )
    assert rows.status_code == 200, rows.text
    wrong = await client.post(infer, json={"inputs": inputs, "parameters": {"image": 5}})
    assert (wrong.status_code, wrong.json()["error"]) == (400, "the parameter image is not a string")
