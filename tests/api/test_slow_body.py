import asyncio
import json

BODY_S = {"body_s": 0.3, "heartbeat_s": 60}


async def ask(base_url: str, *parts: bytes, pause_s: float) -> bytes:
    """One POST whose body is sent in parts, with the announced length of all of them."""
    host, port = base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    length = sum(map(len, parts))
    writer.write(f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode())
    for number, part in enumerate(parts):
        await asyncio.sleep(pause_s if number else 0)
        writer.write(part)
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = head + await reader.readexactly(length)
    writer.close()
    return answer


async def test_a_body_that_never_ends_is_answered_408_and_the_connection_closed(stuck, serving):
    async with stuck(timeouts=BODY_S) as service, serving(service.app) as base_url:
        answer = await ask(base_url, b'{"prompt": ', b"", b'"x"}', pause_s=0.3)
    head, body = answer.split(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert b" 408 " in head.splitlines()[0]
    assert b"connection: close" in head.lower()
    assert (error["code"], error["param"]) == ("body_too_slow", None)
    assert "0.3 s" in error["message"]
    assert error["hint"]


async def test_a_body_in_several_parts_within_the_limit_is_taken(stuck, serving):
    async with stuck(timeouts={"body_s": 20, "heartbeat_s": 60}) as service, serving(service.app) as base_url:
        assert b" 202 " in (await ask(base_url, b'{"prompt": ', b'"x"}', pause_s=0.1)).splitlines()[0]


async def test_the_limit_is_for_bodies_and_not_for_waiting(stuck, serving, fox):
    async with stuck(timeouts=BODY_S) as service, serving(service.app) as base_url:
        import httpx

        async with httpx.AsyncClient(base_url=base_url, timeout=30) as http:
            waited = await http.post("/v1/jobs", json=fox, headers={"Prefer": "wait=1"})
            assert waited.status_code == 202
            async with http.stream("GET", waited.json()["urls"]["events"]) as events:
                assert events.status_code == 200
                with_time = asyncio.create_task(anext(events.aiter_raw()))
                await asyncio.sleep(0.6)
                assert b"event: job." in await with_time
