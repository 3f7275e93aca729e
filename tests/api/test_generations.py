import asyncio
import base64
import time

import pytest

from serve.api.app import create_app

URL = "/v1/images/generations"
YELLOW, BLUE, RED = (254, 212, 43), (39, 92, 225), (216, 34, 41)


async def test_the_picture_shows_what_the_prompt_says(client, fox, picture, corners_are):
    answer = (await client.post(URL, json=fox)).json()
    image = picture(answer["data"][0]["b64_json"])
    assert (image.format, image.size) == ("PNG", (128, 128))
    assert corners_are(image, YELLOW)


async def test_the_answer_says_all_that_openai_says(client, fox, service):
    response = await client.post(URL, json=fox)
    answer = response.json()
    [image] = answer.pop("data")
    tokens = service.prompts.count(fox["prompt"])
    assert answer.pop("created") == pytest.approx(time.time(), abs=5)
    assert answer == {
        "background": "opaque",
        "output_format": "png",
        "quality": "medium",
        "size": "128x128",
        "usage": {
            "input_tokens": tokens,
            "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
            "output_tokens": 64,
            "output_tokens_details": {"image_tokens": 64, "text_tokens": 0},
            "total_tokens": tokens + 64,
        },
    }
    assert set(image) == {"b64_json", "seed", "asset_id", "job_id"}
    assert response.headers["X-Seed"] == "1" == str(image["seed"])
    assert response.headers["X-Job-Id"] == image["job_id"]
    assert response.headers["X-Asset-Id"] == image["asset_id"] == f"{image['job_id']}-0"
    assert response.headers["X-Cache"] == "miss"


async def test_a_seed_makes_the_same_picture_again(client, fox):
    first, again, other = [
        (await client.post(URL, json=fox | {"seed": seed})).json()["data"][0]["b64_json"] for seed in (1, 1, 2)
    ]
    assert first == again != other


async def test_without_a_seed_it_is_random_and_returned(client, fox):
    del fox["seed"]
    drawn = (await client.post(URL, json=fox)).json()["data"][0]
    again = (await client.post(URL, json=fox | {"seed": drawn["seed"]})).json()["data"][0]
    other = (await client.post(URL, json=fox)).json()["data"][0]
    assert again["b64_json"] == drawn["b64_json"] != other["b64_json"]


async def test_picture_i_of_n_has_seed_plus_i(client, fox):
    response = await client.post(URL, json=fox | {"n": 3, "seed": 7})
    images = response.json()["data"]
    alone = (await client.post(URL, json=fox | {"seed": 9})).json()["data"][0]
    assert [image["seed"] for image in images] == [7, 8, 9]
    assert len({image["b64_json"] for image in images}) == 3
    assert images[2]["b64_json"] == alone["b64_json"]
    assert response.headers["X-Asset-Id"].split(", ") == [image["asset_id"] for image in images]
    assert response.json()["usage"]["output_tokens"] == 3 * 64


async def test_the_last_seed_there_is(client, fox):
    response = await client.post(URL, json=fox | {"seed": 2**53 - 1})
    assert response.json()["data"][0]["seed"] == 2**53 - 1


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
async def test_formats(client, fox, picture, corners_are, format):
    answer = (await client.post(URL, json=fox | {"output_format": format})).json()
    image = picture(answer["data"][0]["b64_json"])
    assert answer["output_format"] == format == image.format.lower()
    assert corners_are(image, YELLOW)


async def test_compression_makes_smaller_files(client, fox):
    sizes = [
        len((await client.post(URL, json=fox | {"output_format": "jpeg", "output_compression": c})).content)
        for c in (10, 95)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("size", "pixels"),
    [("auto", (128, 128)), (None, (128, 128)), ("192x64", (192, 64)), ("64x192", (64, 192)), ("256x256", (256, 256))],
)
async def test_sizes(client, fox, picture, size, pixels):
    answer = (await client.post(URL, json=fox | {"size": size, "num_inference_steps": 1})).json()
    assert picture(answer["data"][0]["b64_json"]).size == pixels
    assert answer["size"] == "{}x{}".format(*pixels)


@pytest.mark.parametrize(
    ("quality", "answered", "steps"),
    [
        (None, "medium", 8),
        ("auto", "medium", 8),
        ("standard", "medium", 8),
        ("hd", "high", 12),
        ("low", "low", 4),
        ("max", "max", 20),
    ],
)
async def test_quality_is_a_number_of_steps(client, fox, service, quality, answered, steps):
    answer = (await client.post(URL, json=fox | {"quality": quality})).json()
    metadata = (await service.assets.stat(answer["data"][0]["asset_id"])).metadata
    assert (answer["quality"], metadata["request"]["steps"]) == (answered, steps)


async def test_explicit_steps_win_over_quality(client, fox, service):
    answer = (await client.post(URL, json=fox | {"quality": "low", "num_inference_steps": 3})).json()
    assert answer["quality"] == "low"
    assert (await service.assets.stat(answer["data"][0]["asset_id"])).metadata["request"]["steps"] == 3


async def test_guidance_and_negative_prompt_change_the_picture_and_the_usage(client, fox):
    plain = (await client.post(URL, json=fox)).json()
    guided = fox | {"guidance_scale": 5, "negative_prompt": "yellow background"}
    answer = (await client.post(URL, json=guided)).json()
    assert answer["data"][0]["b64_json"] != plain["data"][0]["b64_json"]
    assert answer["usage"]["input_tokens"] > plain["usage"]["input_tokens"]


async def test_an_alias_is_the_served_model(client, fox):
    assert (await client.post(URL, json=fox | {"model": "dall-e-3"})).status_code == 200


async def test_null_is_left_out(client, fox):
    fields = ("model", "n", "size", "quality", "background", "stream", "preset", "seed", "negative_prompt", "cache")
    assert (await client.post(URL, json=fox | dict.fromkeys(fields))).status_code == 200


async def test_everything_documented_is_accepted(client, fox):
    accepted = {
        "background": "opaque",
        "moderation": "low",
        "user": "u",
        "safety_identifier": "s",
        "style": "vivid",
        "priority": "batch",
        "deadline_ms": 60_000,
        "deterministic": True,
        "cache": "skip",
        "partial_images": 0,
        "stream": False,
    }
    response = await client.post(URL, json=fox | accepted)
    assert response.status_code == 200
    assert "X-Ignored-Parameters" not in response.headers


async def test_what_has_no_effect_is_named(client, fox):
    sent = {"output_compression": 50, "negative_prompt": "blue", "partial_images": 2, "hello": [1]}
    response = await client.post(URL, json=fox | sent)
    names = response.headers["X-Ignored-Parameters"].split(", ")
    assert names == ["output_compression", "negative_prompt", "partial_images", "hello"]


async def test_ignored_names_cannot_break_the_header(client, fox):
    response = await client.post(
        URL, json=fox | {"a\r\nSet-Cookie: x,": 1, "ü狐": 2, "": 3} | {f"k{i}": i for i in range(999)}
    )
    value = response.headers["X-Ignored-Parameters"]
    assert value.startswith("a??Set-Cookie:?x?, ??, , k0")
    assert "Set-Cookie" not in response.headers
    assert len(value) < 600


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("image/png", "png"),
        ("image/jpeg", "jpeg"),
        ("IMAGE/WebP", "webp"),
        ("image/*", "png"),
        ("image/webp;q=0.9, application/json;q=0.1", "webp"),
        ("text/html, image/jpeg, */*;q=0.8", "jpeg"),
    ],
)
async def test_accept_gets_raw_bytes(client, fox, picture, corners_are, accept, format):
    response = await client.post(URL, json=fox, headers={"Accept": accept})
    image = picture(response.content)
    assert response.headers["Content-Type"] == f"image/{format}"
    assert image.format.lower() == format
    assert corners_are(image, YELLOW)
    assert response.headers["X-Seed"] == "1"
    assert response.headers["X-Asset-Id"] == f"{response.headers['X-Job-Id']}-0"


@pytest.mark.parametrize("accept", ["application/json", "*/*", "application/json, image/png", "image/png;q=0", ""])
async def test_accept_gets_json(client, fox, accept):
    response = await client.post(URL, json=fox, headers={"Accept": accept})
    assert response.headers["Content-Type"] == "application/json"


async def test_raw_bytes_are_those_of_the_json(client, fox):
    raw = await client.post(URL, json=fox, headers={"Accept": "image/*"})
    json = (await client.post(URL, json=fox)).json()
    assert raw.content == base64.b64decode(json["data"][0]["b64_json"])


async def test_a_url_leads_to_the_picture(client, fox, picture, corners_are):
    answer = (await client.post(URL, json=fox | {"response_format": "url", "n": 2})).json()
    assert all(set(image) == {"url", "seed", "asset_id", "job_id"} for image in answer["data"])
    for image in answer["data"]:
        assert image["url"].startswith("http://door/v1/assets/")
        assert corners_are(picture((await client.get(image["url"])).content), YELLOW)


async def test_the_base_of_a_url_is_public_url_or_host(client, fox, service, settings, door):
    sent = fox | {"response_format": "url"}
    answer = (await client.post(URL, json=sent, headers={"Host": "pictures.example:8443"})).json()
    assert answer["data"][0]["url"].startswith("http://pictures.example:8443/v1/assets/")
    public = settings.model_copy(update={"public_url": "https://cdn.example/images"})
    async with door(create_app(service, service.assets, service.prompts, public)) as public_client:
        answer = (await public_client.post(URL, json=sent)).json()
    assert answer["data"][0]["url"].startswith("https://cdn.example/images/v1/assets/")


async def test_in_a_crowd_everybody_gets_the_own_picture(client, picture, corners_are):
    wanted = [("yellow", YELLOW), ("blue", BLUE), ("red", RED)] * 3
    answers = await asyncio.gather(
        *(client.post(URL, json={"prompt": f"a cat on a {name} background", "seed": 3}) for name, _ in wanted)
    )
    for answer, (_, colour) in zip(answers, wanted, strict=True):
        assert corners_are(picture(answer.json()["data"][0]["b64_json"]), colour)


async def test_a_content_type_is_not_needed(client, fox):
    body = b'{"prompt": "a red fox", "seed": 1}'
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert (await client.post(URL, content=body, headers=headers)).status_code == 200
