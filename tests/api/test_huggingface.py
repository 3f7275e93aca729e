"""huggingface_hub's own client, and what it never sends."""

import asyncio
import base64
import io

import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

PROMPT = "a red fox on a yellow background"
ROUTE = "/hf/text-to-image"
MODEL = "/hf/models/z-image-turbo"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Tests are kept off the hub; these go to the loopback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("route", [ROUTE, MODEL])
async def test_text_to_image(base_url, route):
    def draw(**changes):
        client = InferenceClient(model=f"{base_url}{route}", token="none", provider="hf-inference")
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


# --- pictures that begin with another


def navy(width: int = 96, height: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(file, "PNG")
    return file.getvalue()


def begun(base_url: str, **changes) -> np.ndarray:
    client = InferenceClient(model=f"{base_url}{MODEL}", token="none", provider="hf-inference")
    how = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 5} | changes
    return np.asarray(client.image_to_image(navy(), **how).convert("RGB")).astype(int)


async def test_image_to_image_begins_with_the_picture(base_url, client):
    close, far = [await asyncio.to_thread(begun, base_url, strength=strength) for strength in (0.25, 1.0)]
    assert close.shape == (64, 96, 3)
    assert 1.5 * np.abs(close - (0, 0, 128)).mean() < np.abs(far - (0, 0, 128)).mean()
    body = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 5, "strength": 0.25, "size": "96x64"}
    body |= {"image": base64.b64encode(navy()).decode()}
    same = await client.post("/v1/images/generations", json=body, headers={"Accept": "image/png"})
    with Image.open(io.BytesIO(same.content)) as image:
        assert np.array_equal(np.asarray(image), close)


async def test_image_to_image_takes_all_that_the_client_has_words_for(base_url):
    size = {"target_size": {"width": 128, "height": 64}}
    plain = await asyncio.to_thread(begun, base_url, **size)
    guided = await asyncio.to_thread(begun, base_url, guidance_scale=3.0, negative_prompt="a cat", **size)
    assert plain.shape == guided.shape == (64, 128, 3)
    assert not np.array_equal(plain, guided)


async def test_image_to_image_takes_files_and_masks(base_url, tmp_path):
    (tmp_path / "navy.png").write_bytes(navy())
    mask = io.BytesIO()
    left = Image.new("L", (96, 64))
    left.paste(255, (0, 0, 48, 64))
    left.save(mask, "PNG")

    def draw(image):
        client = InferenceClient(model=f"{base_url}{MODEL}", token="none", provider="hf-inference")
        how = {"seed": 5, "num_inference_steps": 4, "mask": base64.b64encode(mask.getvalue()).decode()}
        return np.asarray(client.image_to_image(image, prompt=PROMPT, **how)).astype(int)

    from_path = await asyncio.to_thread(draw, str(tmp_path / "navy.png"))
    from_bytes = await asyncio.to_thread(draw, navy())
    away = np.abs(from_path - (0, 0, 128)).mean(axis=(0, 2))
    assert away[:40].mean() > 2 * away[60:].mean()
    assert np.array_equal(from_path, from_bytes)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of the client's own HTTP library
async def test_the_async_client_begins_with_a_picture_too(base_url):
    async with AsyncInferenceClient(model=f"{base_url}{MODEL}", token="none", provider="hf-inference") as client:
        image = await client.image_to_image(navy(), prompt=PROMPT, strength=0.5, num_inference_steps=2)
    assert image.size == (96, 64)


@pytest.mark.parametrize("as_file", [True, False])
async def test_a_picture_alone_is_told_what_is_missing(base_url, tmp_path, as_file):
    (tmp_path / "navy.png").write_bytes(navy())
    client = InferenceClient(model=f"{base_url}{MODEL}", token="none", provider="hf-inference")
    with pytest.raises(HfHubHTTPError, match=r"beside a prompt|a prompt beside it") as caught:
        await asyncio.to_thread(client.image_to_image, str(tmp_path / "navy.png") if as_file else navy())
    assert caught.value.response.status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"inputs": "aGk=", "parameters": {"prompt": PROMPT}}, 400, "image"),
        ({"inputs": 7, "parameters": {"prompt": PROMPT}}, 400, "inputs"),
        ({"parameters": {"prompt": PROMPT}}, 400, "inputs"),
        ({"inputs": "https://example.com/a.png", "parameters": {"prompt": PROMPT}}, 400, "image"),
        ({"inputs": "PICTURE", "parameters": {"prompt": PROMPT, "target_size": 64}}, 400, "target_size"),
        ({"inputs": "PICTURE", "parameters": {"prompt": PROMPT, "target_size": {"width": 64}}}, 400, "height"),
        ({"inputs": "PICTURE", "parameters": {"prompt": PROMPT, "strength": 0}}, 400, "strength"),
        ({"inputs": "PICTURE", "parameters": {"prompt": " "}}, 400, "prompt"),
    ],
)
async def test_bad_pictures(client, refused, body, status, param):
    if body.get("inputs") == "PICTURE":
        body = body | {"inputs": base64.b64encode(navy()).decode()}
    assert refused(await client.post(MODEL, json=body), status, "invalid_value")["param"] == param


async def test_an_unknown_model(client, refused):
    response = await client.post("/hf/models/other", json={"inputs": PROMPT})
    refused(response, 404, "model_not_found")
