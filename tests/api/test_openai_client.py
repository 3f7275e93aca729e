import asyncio

import httpx
import openai as package
import pytest
from openai import OpenAI

PROMPT = "a red fox on a yellow background"
YELLOW = (254, 212, 43)


async def test_async_b64(openai, picture, corners_are):
    answer = await openai.images.generate(model="z-image-turbo", prompt=PROMPT, extra_body={"seed": 1})
    assert corners_are(picture(answer.data[0].b64_json), YELLOW)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.quality, answer.background, answer.size) == ("medium", "opaque", "128x128")


async def test_sync_url(base_url, picture, corners_are):
    def generate():
        with OpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
            return client.images.generate(
                model="dall-e-3", prompt=PROMPT, response_format="url", n=2, quality="hd", style="vivid", user="u"
            )

    answer = await asyncio.to_thread(generate)
    assert answer.quality == "high"
    async with httpx.AsyncClient() as browser:
        for image in answer.data:
            assert corners_are(picture((await browser.get(image.url)).content), YELLOW)


async def test_sync_stream(base_url, picture):
    def generate():
        with OpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
            return list(client.images.generate(model="gpt-image-1", prompt=PROMPT, stream=True, partial_images=3))

    *partial, completed = await asyncio.to_thread(generate)
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert completed.type == "image_generation.completed"
    assert picture(completed.b64_json).size == (128, 128)


async def test_async_stream(openai, picture, corners_are):
    stream = await openai.images.generate(
        prompt=PROMPT, stream=True, partial_images=2, output_format="webp", extra_body={"seed": 1}
    )
    events = [event async for event in stream]
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
    assert {picture(event.b64_json).format for event in events} == {"WEBP"}
    assert corners_are(picture(events[-1].b64_json), YELLOW)
    assert events[-1].usage.output_tokens == 64


async def test_models(openai):
    ids = [model.id async for model in openai.models.list()]
    assert ids[0] == "z-image-turbo"
    assert "dall-e-3" in ids
    assert (await openai.models.retrieve("dall-e-3")).id == "dall-e-3"
    with pytest.raises(package.NotFoundError):
        await openai.models.retrieve("dall-e-9")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_field_is_a_bad_request(openai, stream):
    with pytest.raises(package.BadRequestError) as caught:
        await openai.images.generate(prompt=PROMPT, size="1024x1024", stream=stream)
    error = caught.value
    assert (error.param, error.code, error.type) == ("size", "invalid_value", "invalid_request_error")
    assert 'size: "auto"' in error.body["hint"]
    assert error.request_id == error.body["request_id"]


async def test_an_unknown_model_is_not_found(openai):
    with pytest.raises(package.NotFoundError) as caught:
        await openai.images.generate(prompt=PROMPT, model="sdxl")
    assert caught.value.code == "model_not_found"
    assert "z-image-turbo" in caught.value.body["hint"]


async def test_a_starting_service_is_an_internal_server_error(stuck, serving):
    async with (
        stuck(ready=False) as service,
        serving(service.app) as base_url,
        package.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(package.InternalServerError) as caught:
            await client.images.generate(prompt=PROMPT)
    assert caught.value.status_code == 503
    assert caught.value.code == "not_ready"
