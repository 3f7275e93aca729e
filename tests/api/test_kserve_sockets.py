"""Bytes on a socket that no client sends: each is answered or dropped, and the next request is served."""

import asyncio
import json

import pytest

INFER = "/v2/models/z-image-turbo/infer"
BODY = json.dumps(
    {
        "inputs": [
            {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": ["a fox"]},
            {"name": "steps", "datatype": "INT32", "shape": [1, 1], "data": [1]},
        ],
        "outputs": [{"name": "seed_used"}],
    }
).encode()


async def sent(base_url: str, *headers: str, body: bytes = b"", path: str = INFER) -> bytes:
    """All that comes back, up to the end of the connection; what a server has not read ends it with a reset."""
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()
    host, port = base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(head + body)
        async with asyncio.timeout(30):
            while part := await reader.read(65536):
                answer += part
    except ConnectionResetError:
        assert answer
    finally:
        writer.close()
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (["Content-Length: five"], BODY),
        (["Content-Length: -1"], BODY),
        (["Content-Length: 99999999999999999999999"], b""),
        ([f"Content-Length: {len(BODY)}", "Content-Length: 3"], BODY),
        (["Transfer-Encoding: chunked"], b"zz\r\n" + BODY),
        (["Transfer-Encoding: chunked"], b"ffffffffffffffffff\r\n" + BODY),
        (["Transfer-Encoding: chunked"], b"2\r\n{}{}\r\n0\r\n\r\n"),
        ([f"Content-Length: {len(BODY)}", "Inference-Header-Content-Length: 999999999999"], BODY),
        ([f"Content-Length: {len(BODY)}", "Inference-Header-Content-Length: 0x10"], BODY),
        (["Content-Length: 400000"], b""),
    ],
)
async def test_wrong_lengths_are_refused_and_the_next_request_is_served(base_url, headers, body):
    assert status(await sent(base_url, *headers, body=body)) in (400, 413)
    assert status(await sent(base_url, f"Content-Length: {len(BODY)}", body=BODY)) == 200


@pytest.mark.parametrize("path", [INFER, "/v2/models/z-image-turbo/generate", "/v2/repository/index"])
async def test_a_body_that_does_not_arrive_is_answered_408(stuck, serving, path):
    async with stuck(timeouts={"body_s": 0.3, "heartbeat_s": 60}) as service, serving(service.app) as base_url:
        answer = await sent(base_url, "Content-Length: 100", body=b'{"ready":', path=path)
    head, body = answer.split(b"\r\n\r\n")
    assert status(answer) == 408
    assert b"connection: close" in head.lower()
    error = json.loads(body)
    assert (error["code"], type(error["error"])) == ("body_too_slow", str)


async def test_a_chunked_body_over_the_limit_is_cut_off(base_url):
    """It has no length to be refused by."""
    chunks = b"".join(b"10000\r\n" + b" " * 0x10000 + b"\r\n" for _ in range(8))
    answer = await sent(base_url, "Transfer-Encoding: chunked", body=chunks)
    assert status(answer) == 413


async def test_a_chunked_body_in_many_parts_is_whole(base_url):
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in BODY) + b"0\r\n\r\n"
    assert status(await sent(base_url, "Transfer-Encoding: chunked", body=chunks)) == 200


async def test_who_leaves_while_the_answer_is_sent_harms_nobody(base_url, service):
    """Megabytes of pixels as JSON, of which nothing is read."""
    sides = [{"name": side, "datatype": "INT32", "shape": [1, 1], "data": [256]} for side in ("width", "height")]
    known = json.loads(BODY)
    body = json.dumps({"inputs": known["inputs"] + sides, "outputs": [{"name": "generated_image"}]}).encode()
    host, port = base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    assert (await asyncio.wait_for(reader.read(64), 30)).startswith(b"HTTP/1.1 200")
    writer.transport.abort()
    assert status(await sent(base_url, f"Content-Length: {len(BODY)}", body=BODY)) == 200
    assert (await service.status()).ready


async def test_a_connection_goes_on_after_head(base_url):
    """What load generators ask first; a server that waits for the announced body would close it."""
    host, port = base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    rest = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert status(head) == status(rest) == 200
