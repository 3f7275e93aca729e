import asyncio
import contextlib

import httpx
import pytest

URL = "/v1/images/generations"
LONG = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 50, "guidance_scale": 5, "n": 4}
STREAM = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 50, "stream": True, "partial_images": 3}


async def idle(service) -> bool:
    """True as soon as nothing runs or waits, within the time of a few steps."""
    for _ in range(200):
        status = await service.status()
        if status.queued + status.running == 0:
            return True
        await asyncio.sleep(0.01)
    return False


async def running(service) -> None:
    for _ in range(500):
        if (await service.status()).running:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the job never ran")


@pytest.mark.parametrize("body", [LONG, STREAM | {"partial_images": 0}])
async def test_closing_the_connection_stops_the_job(base_url, service, body):
    async with httpx.AsyncClient(base_url=base_url) as client:
        request = asyncio.create_task(client.post(URL, json=body, timeout=60))
        await running(service)
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
    assert await idle(service)


async def test_leaving_a_stream_in_the_middle_stops_the_job(base_url, service):
    async with httpx.AsyncClient(base_url=base_url) as client:
        async with client.stream("POST", URL, json=STREAM, timeout=60) as response:
            assert "partial_image" in await anext(response.aiter_lines())
            await running(service)
        assert await idle(service)


async def test_the_next_picture_does_not_wait_for_one_nobody_wants(base_url, service, fox):
    async with httpx.AsyncClient(base_url=base_url, timeout=60) as client:
        unwanted = asyncio.create_task(client.post(URL, json=LONG))
        await running(service)
        unwanted.cancel()
        async with asyncio.timeout(3):
            assert (await client.post(URL, json=fox)).status_code == 200


@pytest.mark.parametrize("body", [LONG, STREAM])
async def test_a_cancelled_handler_stops_the_job(client, service, body):
    """What Ray Serve does when a client leaves; here the transport awaits the application in the caller's task."""
    request = asyncio.create_task(client.post(URL, json=body))
    await running(service)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert await idle(service)


async def test_a_job_that_still_waits_leaves_the_queue(stuck, serving, fox):
    async with stuck() as service, serving(service.app) as base_url, httpx.AsyncClient(base_url=base_url) as client:
        first = asyncio.create_task(client.post(URL, json=fox))
        await service.until(running=1)
        second = asyncio.create_task(client.post(URL, json=fox))
        await service.until(running=1, queued=1)
        second.cancel()
        await service.until(running=1, queued=0)
        first.cancel()
        await service.until(running=0, queued=0)
        await asyncio.gather(first, second, return_exceptions=True)


async def test_leaving_while_the_body_is_sent_is_quiet(base_url, service, client):
    host, port = base_url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt"')
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    assert await idle(service)
    assert (await client.get("/healthz")).status_code == 200
