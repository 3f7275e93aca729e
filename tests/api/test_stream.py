import asyncio
import json

import openai as package
import pytest

URL = "/v1/images/generations"
LONG = {
    "prompt": "a cat",
    "size": "256x256",
    "stream": True,
    "partial_images": 3,
    "extra_body": {"num_inference_steps": 50},
}


def events(text: str) -> list[tuple[str | None, dict]]:
    """Event name and data of every block, none of which may have another field."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    assert all(set(block) in ({"event", "data"}, {"data"}) for block in blocks)
    return [(block.get("event"), json.loads(block["data"])) for block in blocks]


async def test_partial_pictures_then_the_whole(client, fox, picture):
    response = await client.post(URL, json=fox | {"stream": True, "partial_images": 3})
    *partial, (name, completed) = events(response.text)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert [data["partial_image_index"] for _, data in partial] == [0, 1, 2]
    common = {"type", "b64_json", "background", "created_at", "output_format", "quality", "size"}
    assert all(event == data["type"] == "image_generation.partial_image" for event, data in partial)
    assert all(set(data) == common | {"partial_image_index"} for _, data in partial)
    assert all(picture(data["b64_json"]).format == "PNG" for _, data in partial)
    assert name == completed["type"] == "image_generation.completed"
    assert set(completed) == common | {"usage", "seed", "asset_id", "job_id"}


async def test_the_streamed_bytes_are_the_plain_ones(client, fox):
    [(_, streamed)] = events((await client.post(URL, json=fox | {"stream": True})).text)
    plain = (await client.post(URL, json=fox)).json()
    assert streamed["b64_json"] == plain["data"][0]["b64_json"]
    del plain["usage"]["output_tokens_details"]
    assert streamed["usage"] == plain["usage"]


async def test_headers_name_job_and_seed(client, fox):
    response = await client.post(URL, json=fox | {"stream": True, "what": 1})
    [(_, completed)] = events(response.text)
    assert response.headers["X-Job-Id"] == completed["job_id"]
    assert response.headers["X-Seed"] == "1"
    assert response.headers["X-Ignored-Parameters"] == "what"
    assert response.headers["X-Request-ID"]


async def test_a_stream_may_ask_for_a_link_too(client, fox, picture):
    response = await client.post(URL, json=fox | {"stream": True, "response_format": "url"})
    [(_, completed)] = events(response.text)
    linked = await client.get(completed["url"])
    assert picture(linked.content).tobytes() == picture(completed["b64_json"]).tobytes()


async def test_previews_are_gone_when_the_stream_is(client, fox, settings):
    response = await client.post(URL, json=fox | {"stream": True, "partial_images": 2})
    assert len(events(response.text)) == 3
    folder = settings.data / "assets" / "previews" / response.headers["X-Job-Id"]
    for _ in range(100):
        if not folder.exists():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{folder} is still there")


async def test_a_stream_wins_over_accept(client, fox):
    response = await client.post(URL, json=fox | {"stream": True}, headers={"Accept": "image/png"})
    assert response.headers["Content-Type"].startswith("text/event-stream")


async def test_pictures_arrive_while_the_job_runs(openai, service):
    stream = await openai.images.generate(**LONG)
    first = await anext(aiter(stream))
    assert first.type == "image_generation.partial_image"
    assert (await service.status()).running == 1
    await stream.close()


async def test_an_error_before_the_first_event_has_its_status(client, fox):
    response = await client.post(URL, json=fox | {"stream": True, "n": 2})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


async def test_an_error_later_is_the_last_event(openai, service):
    response = await openai.images.with_raw_response.generate(**LONG)
    job_id = response.headers["X-Job-Id"]
    await service.cancel(job_id)
    with pytest.raises(package.APIError) as caught:
        [event async for event in response.parse()]
    assert caught.value.code == "job_canceled"
    assert caught.value.body["request_id"] == response.headers["X-Request-ID"]
