"""huggingface_hub's own client, and what it never sends."""

import asyncio

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

PROMPT = "a red fox on a yellow background"
ROUTE = "/hf/text-to-image"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Tests are kept off the hub; these go to the loopback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


async def test_text_to_image(base_url, picture):
    def draw(**changes):
        client = InferenceClient(model=f"{base_url}{ROUTE}", token="none", provider="hf-inference")
        return client.text_to_image(PROMPT, seed=5, num_inference_steps=3, **changes)

    image = await asyncio.to_thread(draw, width=96, height=64, guidance_scale=2.5, negative_prompt="a cat")
    assert image.size == (96, 64)
    assert (await asyncio.to_thread(draw)).tobytes() == (await asyncio.to_thread(draw)).tobytes()


async def test_the_async_client_is_told_what_is_wrong(base_url):
    async with AsyncInferenceClient(model=f"{base_url}{ROUTE}", token="none", provider="hf-inference") as client:
        with pytest.raises(HfHubHTTPError) as caught:
            await client.text_to_image(PROMPT, num_inference_steps=99)
    assert caught.value.response.status_code == 400


async def test_the_format_is_asked_for(client, picture):
    body = {
        "inputs": PROMPT,
        "parameters": {"seed": 1, "scheduler": "x", "num_inference_steps": 1, "strength": 0.5},
        "model": "y",
    }
    response = await client.post(ROUTE, json=body, headers={"Accept": "image/webp"})
    assert response.headers["Content-Type"] == "image/webp"
    assert response.headers["X-Seed"] == "1"
    assert set(response.headers["X-Ignored-Parameters"].split(", ")) == {"scheduler", "model", "strength"}
    assert picture(response.content).format == "WEBP"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": 7}, "prompt"),
        ({"inputs": PROMPT, "parameters": []}, None),
        ({"inputs": PROMPT, "parameters": [1]}, "parameters"),
        ({"inputs": PROMPT, "parameters": {"width": 64}}, "height"),
        ({"inputs": PROMPT, "parameters": {"width": "64", "height": 64}}, "width"),
        ({"inputs": PROMPT, "parameters": {"width": 65, "height": 64}}, "size"),
    ],
)
async def test_bad_bodies(client, refused, body, param):
    response = await client.post(ROUTE, json=body)
    if param is None:
        assert response.status_code == 200
    else:
        assert refused(response, 400, "invalid_value")["param"] == param
