"""Pictures through HTTP, Ray Serve and all four processes; every client gets its own."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from io import BytesIO

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from serve.messages import ImageRequest
from tests.cluster.server import Server
from tests.exactness import inputs
from tests.exactness.reference import draw

pytestmark = pytest.mark.cluster

BACKGROUNDS = {
    "red": (220, 30, 30),
    "orange": (250, 130, 20),
    "yellow": (250, 215, 40),
    "green": (35, 160, 70),
    "blue": (35, 90, 225),
    "purple": (125, 50, 190),
    "pink": (250, 140, 190),
    "black": (15, 15, 15),
}
OBJECTS = ("a red fox", "a rocket", "a cat", "a robot")


def pixels(image_b64: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(image_b64))).convert("RGB")).astype(int)


def background_of(picture: np.ndarray) -> str:
    corners = picture[[2, 2, -3, -3], [2, -3, 2, -3]].mean(0)
    return min(BACKGROUNDS, key=lambda name: np.abs(corners - BACKGROUNDS[name]).sum())


async def test_a_burst_of_32_prompts_gives_everybody_their_own_picture(server: Server) -> None:
    asked = [(thing, background) for background in BACKGROUNDS for thing in OBJECTS]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:
        answers = await asyncio.gather(
            *(
                client.images.generate(prompt=f"{thing} on a {background} background", extra_body={"seed": seed})
                for seed, (thing, background) in enumerate(asked)
            )
        )
    pictures = [pixels(answer.data[0].b64_json) for answer in answers]
    assert [background_of(picture) for picture in pictures] == [background for _, background in asked]
    for seed, ((thing, background), picture) in enumerate(zip(asked, pictures, strict=True)):
        request = ImageRequest(
            model="z-image-turbo",
            prompt=f"{thing} on a {background} background",
            width=128,
            height=128,
            steps=8,
            seed=seed,
        )
        assert np.abs(picture - draw(request).astype(int)).max() <= 1, (thing, background)


async def test_pictures_that_begin_with_others_and_with_noise_are_drawn_together(server: Server) -> None:
    begun = ImageRequest(
        model="z-image-turbo",
        prompt="a cat on a red background",
        width=128,
        height=96,
        steps=8,
        seed=5,
        image=inputs.picture(1, 128, 96),
        strength=0.6,
    )
    masked = replace(begun, mask=inputs.mask(1, 128, 96), strength=1.0)
    text = replace(begun, image=None, strength=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

        async def asked(request: ImageRequest) -> np.ndarray:
            fields = {"prompt": request.prompt, "seed": request.seed, "size": "128x96", "strength": request.strength}
            named = {"image": request.image, "mask": request.mask}
            files = {param: base64.b64encode(inputs.KNOWN[name].data).decode() for param, name in named.items() if name}
            answer = await client.post("/v1/images/generations", json=fields | files)
            return pixels(answer.json()["data"][0]["b64_json"])

        requests = [replace(kind, seed=seed) for seed in range(3) for kind in (begun, masked, text)]
        drawn = await asyncio.gather(*map(asked, requests))
    for request, picture in zip(requests, drawn, strict=True):
        assert np.abs(picture - draw(request).astype(int)).max() <= 1, request


async def test_n_images_use_following_seeds_and_can_be_made_again_alone(server: Server) -> None:
    body = {"prompt": "two cats on a blue background", "seed": 40, "size": "64x96"}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        four = (await client.post("/v1/images/generations", json=body | {"n": 4})).json()["data"]
        third = (await client.post("/v1/images/generations", json=body | {"seed": 42})).json()["data"]
    assert [image["seed"] for image in four] == [40, 41, 42, 43]
    assert np.abs(pixels(four[2]["b64_json"]) - pixels(third[0]["b64_json"])).max() <= 1


async def test_streamed_partial_images_come_before_the_completed_one(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:
        stream = await client.images.generate(
            prompt="a red fox on a yellow background", stream=True, partial_images=2, extra_body={"seed": 1}
        )
        events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [background_of(pixels(event.b64_json)) for event in events] == ["yellow"] * 3
    assert pixels(events[0].b64_json).shape == (128, 128, 3)
