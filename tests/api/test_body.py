import pytest

URL = "/v1/images/generations"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"prompt=a+red+fox", "not JSON"),
        (b'{"prompt": "a"} {}', "not JSON"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
        ('{"prompt": "a"}'.encode("utf-16"), "not UTF-8"),
        (b'{"prompt": "\\ud83e"}', "lone surrogate"),
        (b'{"prompt": "a", "x": {"\\uDD8A": 1}}', "lone surrogate"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "NaN"),
        (b'{"prompt": "a", "guidance_scale": -Infinity}', "-Infinity"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "too long"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is in the body twice"),
        (b'{"prompt": "a", "x": {"y": 1, "y": 2}}', "'y' is in the body twice"),
        (b"[]", "array, not an object"),
        (b'"prompt"', "string, not an object"),
        (b"null", "null, not an object"),
        (b"true", "boolean, not an object"),
        (b"8", "number, not an object"),
    ],
)
async def test_what_is_not_one_json_object_is_refused(client, refused, content, says):
    error = refused(await client.post(URL, content=content), 400, "invalid_value")
    assert says in error["message"]


@pytest.mark.parametrize(
    "nested", [b"[" * 100_000, b'{"x":' * 40_000, b'{"prompt":"a","x":' + b"[" * 32 + b"]" * 32 + b"}"]
)
async def test_deep_nesting_is_refused(client, refused, nested):
    error = refused(await client.post(URL, content=nested), 400, "invalid_value")
    assert "deeper than 32 levels" in error["message"]


async def test_nesting_up_to_the_limit_is_only_ignored(client):
    nested = b'{"prompt": "a fox", "x": ' + b"[" * 31 + b"]" * 31 + b"}"
    response = await client.post(URL, content=nested)
    assert response.headers["X-Ignored-Parameters"] == "x"


async def test_an_escaped_pair_is_one_character(client):
    assert (await client.post(URL, content=b'{"prompt": "\\ud83e\\udd8a"}')).status_code == 200


async def test_an_announced_length_over_the_limit_is_refused_unread(client, refused, settings):
    error = refused(
        await client.post("/v1/assets/delete", content=b"x", headers={"Content-Length": "300001"}),
        413,
        "body_too_large",
    )
    assert "300000 bytes" in error["message"]
    pictures = str(300_000 + 5 * settings.limits.image_bytes)
    refused(await client.post(URL, content=b"x", headers={"Content-Length": pictures}), 413, "body_too_large")


async def test_a_body_over_the_limit_is_refused_while_it_arrives(client, refused):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 100_000

    refused(await client.post(URL, content=endless()), 413, "body_too_large")
    assert sent == 4


async def test_a_real_server_answers_a_body_over_the_limit(base_url, refused):
    import httpx

    async with httpx.AsyncClient(base_url=base_url) as client:
        refused(await client.post(URL, content=b"x" * 5_000_000), 413, "body_too_large")
