"""What clients never send, and what they should never see."""

import asyncio
import base64
import gzip
import json
import struct
import zlib

import httpx
import pytest

from serve.api.app import create_app
from serve.local import open_service

INFER = "/v2/models/z-image-turbo/infer"
GENERATE = "/v2/models/z-image-turbo/generate"
HEADER = "Inference-Header-Content-Length"
PROMPT = {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": ["a fox"]}
ONE_STEP = {"name": "steps", "datatype": "INT32", "shape": [1, 1], "data": [1]}
QUICK = {"inputs": [PROMPT, ONE_STEP], "outputs": [{"name": "seed_used"}]}


@pytest.fixture
def refused_by():
    """The shape of every error under /v2; returns its text."""

    def check(response: httpx.Response, status: int) -> str:
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"] == "application/json"
        error = response.json()["error"]
        assert isinstance(error, str)
        assert error
        assert "Traceback" not in error
        assert status != 503 or int(response.headers["Retry-After"]) >= 1
        return error

    return check


def infer(**changes) -> dict:
    return {"inputs": [PROMPT], **changes}


def prompt(**changes) -> dict:
    entry = PROMPT | changes
    return infer(inputs=[{name: value for name, value in entry.items() if value is not ...}])


def other(name: str, datatype: str, data: list, **changes) -> dict:
    return infer(inputs=[PROMPT, {"name": name, "datatype": datatype, "shape": [1, 1], "data": data, **changes}])


def behind(document: dict, binary: bytes, length: object = None) -> dict:
    """The arguments of a request with binary tensors."""
    head = json.dumps(document).encode()
    return {"content": head + binary, "headers": {HEADER: str(len(head) if length is None else length)}}


def sized(size: object, **changes) -> dict:
    return prompt(data=..., parameters={"binary_data_size": size}, **changes)


def text(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


async def test_no_content_type_is_needed_and_json_is_answered(client):
    response = await client.post(INFER, content=json.dumps(QUICK | {"id": "ä"}))
    assert response.headers["Content-Type"] == "application/json"
    assert HEADER not in response.headers
    answer = response.json()
    [output] = answer.pop("outputs")
    assert answer == {"model_name": "z-image-turbo", "model_version": "1", "id": "ä"}
    assert (output["name"], output["datatype"], output["shape"]) == ("seed_used", "INT64", [1, 1])
    assert len(response.headers["X-Job-Id"]) == 26


async def test_files_are_base64_in_json_and_themselves_behind_it(client, picture):
    body = infer(inputs=[PROMPT, ONE_STEP], outputs=[{"name": "image_bytes"}, {"name": "generated_image"}])
    in_json = (await client.post(INFER, json=body)).json()["outputs"]
    assert in_json[0]["parameters"] == {"content_type": "base64"}
    assert list(picture(in_json[0]["data"][0]).convert("RGB").tobytes()) == in_json[1]["data"]
    response = await client.post(
        INFER, json=infer(outputs=[{"name": "image_bytes", "parameters": {"binary_data": True}}])
    )
    length = int(response.headers[HEADER])
    [output] = json.loads(response.content[:length])["outputs"]
    assert output["parameters"]["content_type"] == "image/png"
    assert output["parameters"]["binary_data_size"] == len(response.content) - length
    assert "data" not in output
    assert response.content[length : length + 4] == struct.pack("<I", len(response.content) - length - 4)
    assert picture(response.content[length + 4 :]).size == (128, 128)


async def test_an_output_may_say_otherwise_than_the_request(client):
    outputs = [{"name": "seed_used", "parameters": {"binary_data": False}}, {"name": "image_bytes"}]
    body = infer(inputs=[PROMPT, ONE_STEP], outputs=outputs, parameters={"binary_data_output": True})
    response = await client.post(INFER, json=body)
    seed, file = json.loads(response.content[: int(response.headers[HEADER])])["outputs"]
    assert "data" in seed
    assert "binary_data_size" in file["parameters"]


async def test_nested_lists_and_unknown_names_are_taken(client):
    nested = prompt(data=[["a fox"]])["inputs"] + [ONE_STEP]
    body = infer(inputs=nested, later=1, parameters={"sequence_id": 7, "what": "ever"}, outputs=[{"name": "seed_used"}])
    assert (await client.post(INFER, json=body)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        infer(id=7),
        infer(inputs=[]),
        infer(inputs={}),
        infer(inputs=["prompt"]),
        infer(inputs=[PROMPT, PROMPT]),
        infer(inputs=[ONE_STEP]),
        infer(triton_enable=1),
        infer(parameters=[]),
        infer(parameters={"triton_final": True}),
        infer(parameters={"priority": "1"}),
        infer(parameters={"priority": 1.0}),
        infer(parameters={"priority": True}),
        infer(parameters={"priority": -1}),
        infer(parameters={"timeout": 2**64}),
        infer(parameters={"deep": {}}),
        infer(parameters={"binary_data_output": 1}),
        infer(outputs={"name": "image_bytes"}),
        infer(outputs=[{"name": "image"}]),
        infer(outputs=[{"name": "seed_used"}] * 2),
        infer(outputs=[{"name": "seed_used", "parameters": {"binary_data": "yes"}}]),
        prompt(datatype="bytes"),
        prompt(datatype=...),
        prompt(shape=...),
        prompt(shape=[1]),
        prompt(shape=[1, 2], data=["a", "b"]),
        prompt(shape=[0, 1], data=[]),
        prompt(shape=[-1, 1]),
        prompt(shape=[True, 1]),
        prompt(shape=[1.0, 1]),
        prompt(shape=["1", 1]),
        prompt(shape=[2**63, 1]),
        prompt(shape=[2**64 + 1, 1]),
        prompt(shape=[2**32, 2**32]),
        prompt(shape=[1] * 1000),
        prompt(data=...),
        prompt(data="a fox"),
        prompt(data=["a", "b"]),
        prompt(data=[]),
        prompt(data=[[]]),
        prompt(data=[7]),
        prompt(data=[None]),
        prompt(parameters={"binary_data_size": 9}),
        prompt(parameters=[]),
        other("seed", "INT64", ["7"]),
        other("seed", "INT64", [7.0]),
        other("seed", "INT64", [True]),
        other("seed", "INT64", [2**63]),
        other("seed", "INT64", [-(2**63)]),
        other("steps", "INT32", [2**31]),
        other("steps", "INT32", [0]),
        other("guidance", "FP32", ["1"]),
        other("guidance", "FP32", [1e39]),
        other("guidance", "FP32", [10**400]),
        other("guidance", "FP32", [21]),
        other("width", "INT32", [0]),
        other("height", "INT32", [2**31 - 1]),
    ],
    ids=lambda body: json.dumps(body)[-70:],
)
async def test_a_wrong_request_is_400(client, refused_by, body):
    refused_by(await client.post(INFER, content=json.dumps(body)), 400)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b'{"inputs": NaN}',
        b"[" * 100_000,
        b'{"inputs":' + b"[" * 2000 + b"]" * 2000 + b"}",
        json.dumps(prompt(data=["\ud800"])).encode(),
        b'{"inputs": [{"name": "prompt", "shape": [' + b"9" * 5000 + b", 1]}]}",
    ],
    ids=["empty", "not UTF-8", "cut", "NaN", "deep", "nested", "surrogate", "long number"],
)
async def test_what_is_no_json_is_400(client, refused_by, content):
    refused_by(await client.post(INFER, content=content), 400)
    refused_by(await client.post(GENERATE, content=content), 400)


@pytest.mark.parametrize(
    "request_",
    [
        {"content": json.dumps(sized(9)).encode()},
        *(behind(sized(9), text(b"a fox"), length) for length in ("x", "+5", "-5", "0", "5.0", 10**6, "9" * 5000, 20)),
        behind(sized(9), text(b"a fox")[:-1]),
        behind(sized(9), text(b"a fox") + b"!"),
        *(behind(sized(size), text(b"a fox")) for size in (8, 2**64, -1, True, "9", 9.0)),
        behind(sized(9), struct.pack("<I", 2**32 - 1) + b"a fox"),
        behind(sized(9), struct.pack("<I", 4) + b"a fox"),
        behind(sized(3), b"abc"),
        behind(sized(6), text(b"\xff\xfe")),
        behind(sized(9, shape=[2, 1]), text(b"a fox")),
        behind(prompt(), b"left over"),
    ],
)
async def test_wrong_binary_tensors_are_400(client, refused_by, request_):
    refused_by(await client.post(INFER, **request_), 400)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", json.dumps(QUICK).encode()),
        ("gzip", gzip.compress(json.dumps(QUICK).encode())[:-9]),
        ("gzip", gzip.compress(json.dumps(QUICK).encode()) + b"more"),
        ("deflate", gzip.compress(json.dumps(QUICK).encode())),
        ("br", json.dumps(QUICK).encode()),
        ("gzip, gzip", gzip.compress(gzip.compress(json.dumps(QUICK).encode()))),
    ],
)
async def test_wrong_encodings_are_400(client, refused_by, encoding, content):
    refused_by(await client.post(INFER, content=content, headers={"Content-Encoding": encoding}), 400)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_body_that_becomes_too_large_is_413(client, refused_by, pack):
    encoding = {"Content-Encoding": "gzip" if pack is gzip.compress else "deflate"}
    bomb = pack(bytes(64 << 20))
    assert len(bomb) < 100_000
    refused_by(await client.post(INFER, content=bomb, headers=encoding), 413)


async def test_a_body_over_the_limit_is_413(client, refused_by):
    refused_by(await client.post(INFER, content=b" " * 300_001), 413)


async def test_unknown_paths_and_wrong_methods(client, refused_by):
    refused_by(await client.get("/v2/trace/setting"), 404)
    refused_by(await client.get("/v2/models/z-image-turbo/versions/2"), 404)
    refused_by(await client.get("/v2/models/sdxl/config"), 404)
    refused_by(await client.get(INFER), 405)
    refused_by(await client.post("/v2"), 405)
    refused_by(await client.post("/v2/models/text_encoder/generate", json={"prompt": "a fox"}), 501)
    refused_by(await client.post("/v2/repository/index", content='{"ready": 1}'), 400)


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server_is_described_without_a_redirect(client, path):
    response = await client.get(path)
    assert response.status_code == 200
    assert response.json()["name"] == "zimage-serve"


@pytest.mark.parametrize("body", ["", "{}", '{"ready": true}'])
async def test_the_index_with_every_body(client, body):
    assert len((await client.post("/v2/repository/index", content=body)).json()) == 3


async def test_strangers_and_viewers_are_refused_in_the_same_shape(guarded, door, refused_by):
    async with guarded() as service, door(service.app) as client:
        refused_by(await client.get("/v2"), 401)
        refused_by(await client.post(INFER, json=infer()), 401)
        refused_by(await client.post(INFER, json=infer(), headers=service.headers("viewer")), 403)
        assert (await client.get("/v2/health/live")).json() == {"live": True}


async def test_the_quota_counts_every_row(guarded, door, refused_by):
    async with guarded(users={"poor": {"images_per_day": 2}}) as service:
        await service.key("poor")
        async with door(service.app) as client:
            three = prompt(shape=[3, 1], data=["a fox"] * 3)
            response = await client.post(INFER, json=three, headers=service.headers("poor"))
            assert "quota" in refused_by(response, 429)


async def test_too_many_pixels_for_json_are_refused_before_work(stuck, door, refused_by):
    async with stuck(max_side_px=2048) as service, door(service.app) as client:
        sides = [
            {"name": side, "datatype": "INT32", "shape": [2, 1], "data": [2048, 2048]} for side in ("width", "height")
        ]
        body = infer(inputs=[PROMPT | {"shape": [2, 1], "data": ["a", "b"]}, *sides])
        assert "binary_data" in refused_by(await client.post(INFER, json=body), 400)
        assert (await service.dispatcher.status()).running == 0


async def test_a_hit_never_waits(settings, tmp_path, door):
    """Even with the shortest timeout there is."""
    changes = {"data": tmp_path, "cache": settings.cache.model_copy(update={"enabled": True})}
    async with open_service(settings.model_copy(update=changes)) as service:
        app = create_app(service, service.assets, service.prompts, settings)
        async with door(app) as client:
            body = {"prompt": "a fox", "seed": 7, "steps": 50}
            first = (await client.post(GENERATE, json=body)).json()
            again = await client.post(GENERATE, json=body | {"timeout": 1})
    assert again.json() == first


async def test_chunked_bodies_are_taken(base_url):
    async def chunks():
        for byte in json.dumps(QUICK).encode():
            yield bytes([byte])

    async with httpx.AsyncClient(base_url=base_url) as http:
        response = await http.post(INFER, content=chunks(), headers={"Content-Encoding": "identity"}, timeout=60)
    assert response.status_code == 200


async def raw(base_url: str, data: bytes, close: bool = False) -> bytes:
    host, port = base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    answer = b"" if close else await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


def post(body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return f"POST {INFER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n".encode() + body


async def test_a_client_that_leaves_cancels_all_of_its_rows(stuck, serving):
    async with stuck() as service, serving(service.app) as base_url:
        body = json.dumps(prompt(shape=[4, 1], data=["a fox"] * 4)).encode()
        host, port = base_url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(post(body))
        await service.until(queued=3, running=1)
        writer.close()
        await service.until(queued=0, running=0)


async def test_a_running_row_stops_at_its_next_step(base_url, service):
    sides = [{"name": side, "datatype": "INT32", "shape": [1, 1], "data": [256]} for side in ("width", "height")]
    steps = ONE_STEP | {"data": [50]}
    guidance = {"name": "guidance", "datatype": "FP32", "shape": [1, 1], "data": [5]}
    body = json.dumps(infer(inputs=[PROMPT, steps, guidance, *sides])).encode()
    host, port = base_url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(post(body))
    for _ in range(500):
        if (await service.status()).running:
            break
        await asyncio.sleep(0.01)
    writer.close()
    for _ in range(500):
        status = await service.status()
        if status.running + status.queued == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(status)


async def test_early_ends_and_garbage_harm_nobody(base_url, service):
    body = json.dumps(QUICK).encode()
    await raw(base_url, post(body, len(body) + 100), close=True)
    await raw(base_url, post(body)[:-20], close=True)
    assert b"400" in (await raw(base_url, b"\x16\x03\x01\x00\xa5\x01 \r\n\r\n")).split(b"\r\n")[0]
    assert (await raw(base_url, post(body))).startswith(b"HTTP/1.1 200")
    assert (await service.status()).ready


async def test_generate(client, picture):
    body = {"prompt": ["a fox"], "id": "r2", "seed": 3, "parameters": {"width": 64, "steps": [1], "priority": 3}}
    answer = (await client.post(GENERATE, json=body)).json()
    file = answer.pop("image_bytes")
    assert answer == {"model_name": "z-image-turbo", "model_version": "1", "id": "r2", "seed_used": 3}
    assert picture(file).size == (64, 128)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": 7},
        {"prompt": ["a", "b"]},
        {"prompt": "a", "seed": "3"},
        {"prompt": "a", "parameters": {"prompt": "b"}},
        {"prompt": "a", "parameters": {"x": [1]}} | {"parameters": []},
        {"prompt": "a", "priority": 9},
        {"prompt": "a", "id": 7},
        {"prompt": "a", "steps": 51},
    ],
)
async def test_a_wrong_generate_is_400(client, refused_by, body):
    refused_by(await client.post(GENERATE, json=body), 400)
    refused_by(await client.post(f"{GENERATE}_stream", json=body), 400)


async def test_generate_stream(client):
    plain = (await client.post(GENERATE, json={"prompt": "a fox", "seed": 3, "steps": 3})).json()
    response = await client.post(f"{GENERATE}_stream", json={"prompt": "a fox", "seed": 3, "steps": 3, "id": "s"})
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    *steps, last = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n") if event]
    known = {"model_name": "z-image-turbo", "model_version": "1", "id": "s"}
    assert steps[-1] == known | {"step": 3, "steps": 3}
    assert last == plain | {"id": "s"}
    assert base64.b64decode(last["image_bytes"]).startswith(b"\x89PNG")


async def test_a_stream_that_fails_later_ends_with_its_error(base_url):
    body = {"prompt": "a fox", "steps": 50, "width": 256, "height": 256, "guidance": 5}
    async with (
        httpx.AsyncClient(base_url=base_url, timeout=60) as http,
        http.stream("POST", f"{GENERATE}_stream", json=body) as response,
    ):
        lines = response.aiter_lines()
        assert json.loads((await anext(lines)).removeprefix("data: "))["steps"] == 50
        await http.post(f"/v1/jobs/{response.headers['X-Job-Id']}/cancel")
        rest = [line async for line in lines if line]
    assert "cancelled" in json.loads(rest[-1].removeprefix("data: "))["error"]
