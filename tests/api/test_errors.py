import asyncio
import re

import pytest

from serve.api.app import create_app
from serve.assets.local import LocalAssets
from serve.errors import DeadlineExceeded, ReplicaLost
from serve.metrics.tally import Recorder

URL = "/v1/images/generations"
PROBLEM = {"Accept": "application/problem+json"}
LONG = {"prompt": "a cat", "size": "256x256", "num_inference_steps": 50, "n": 2}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", None, "a valid string, got null"),
        ("prompt", 8, "a valid string, got 8"),
        ("prompt", ["a"], 'got ["a"]'),
        ("prompt", "", "blank"),
        ("prompt", " \n\t", "blank"),
        ("n", 0, "greater than or equal to 1, got 0"),
        ("n", 11, "less than or equal to 10, got 11"),
        ("n", "2", 'a valid integer, got "2"'),
        ("n", True, "a valid integer, got true"),
        ("n", 2.0, "a valid integer, got 2.0"),
        ("seed", -1, "got -1"),
        ("seed", 2**53, "got 9007199254740992"),
        ("seed", "1", "a valid integer"),
        ("seed", 10**400, "..."),
        ("size", "1024x1024", "1024 is over this model's 256 pixels"),
        ("size", "272x128", "272 is over"),
        ("size", "48x64", "48 is under 64 pixels"),
        ("size", "100x128", "multiples of 16"),
        ("size", "256x80", "over 3:1"),
        ("size", "80x256", "over 3:1"),
        ("size", "128", "not WIDTHxHEIGHT"),
        ("size", "128X128", "not WIDTHxHEIGHT"),
        ("size", "0128x128", "not WIDTHxHEIGHT"),
        ("size", "１２８x128", "not WIDTHxHEIGHT"),
        ("size", "128x128\n", "not WIDTHxHEIGHT"),
        ("size", 128, "a valid string"),
        ("quality", "ultra", "'standard' or 'hd'"),
        ("output_format", "gif", "'png', 'jpeg' or 'webp'"),
        ("output_compression", 101, "got 101"),
        ("background", "transparent", "transparent"),
        ("response_format", "file", "'b64_json' or 'url'"),
        ("stream", "true", "a valid boolean"),
        ("partial_images", 4, "got 4"),
        ("num_inference_steps", 0, "got 0"),
        ("num_inference_steps", 51, "got 51"),
        ("guidance_scale", -0.1, "got -0.1"),
        ("guidance_scale", 20.5, "got 20.5"),
        ("guidance_scale", "5", "a valid number"),
        ("guidance_scale", True, "a valid number"),
        ("preset", "portrait", "unknown preset 'portrait'"),
        ("style_preset", "anime", "unknown style_preset 'anime'"),
        ("priority", "urgent", "'interactive', 'standard' or 'batch'"),
        ("deadline_ms", 0, "got 0"),
        ("deadline_ms", 1.5, "got 1.5"),
        ("deterministic", 1, "a valid boolean"),
        ("cache", "only", "'auto' or 'skip'"),
        ("negative_prompt", 1, "a valid string"),
        ("user", {}, "a valid string"),
        ("model", 1, "a valid string"),
    ],
)
async def test_a_bad_field_is_named_with_value_and_limit(client, refused, fox, field, value, says):
    error = refused(await client.post(URL, json=fox | {field: value}), 400, "invalid_value")
    assert error["param"] == field
    assert says in error["message"]
    assert error["hint"]


async def test_infinity_by_exponent_is_not_a_number(client, refused):
    response = await client.post(URL, content=b'{"prompt": "a", "guidance_scale": 1e999}')
    assert "finite" in refused(response, 400, "invalid_value")["message"]


async def test_a_prompt_is_required(client, refused):
    error = refused(await client.post(URL, json={}), 400, "invalid_value")
    assert (error["param"], error["message"]) == ("prompt", "prompt is required")


async def test_an_openai_size_is_told_the_way_out(client, refused, fox):
    error = refused(await client.post(URL, json=fox | {"size": "1024x1024"}), 400, "invalid_value")
    assert 'size: "auto"' in error["hint"]
    assert "256" in error["hint"]


async def test_a_blank_prompt_names_its_fragment(client, refused):
    error = refused(await client.post(URL, json={"prompt": "  "}), 400, "invalid_value")
    assert error["fragment"] == {"start": 0, "end": 2, "text": "  "}


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
async def test_too_many_tokens_name_count_limit_and_fragment(client, refused, fox, param):
    text = "🦊 fox " * 200
    error = refused(await client.post(URL, json=fox | {param: text}), 400, "prompt_too_long")
    fragment = error["fragment"]
    assert error["param"] == param
    assert re.search(r"has \d+ tokens, the limit is 512", error["message"])
    assert text[fragment["start"] : fragment["end"]] == fragment["text"]


async def test_too_many_characters_are_refused_before_counting_tokens(client, refused):
    error = refused(await client.post(URL, json={"prompt": "a" * 32_001}), 400, "prompt_too_long")
    assert "32001 characters, the limit is 32000" in error["message"]
    assert error["fragment"] == {"start": 32_000, "end": 32_001, "text": "a"}


async def test_seeds_may_not_run_over(client, refused, fox):
    error = refused(await client.post(URL, json=fox | {"seed": 2**53 - 1, "n": 2}), 400, "invalid_value")
    assert (error["param"], error["hint"]) == ("seed", f"send at most {2**53 - 2}")


async def test_one_picture_per_stream_and_per_raw_answer(client, refused, fox):
    streamed = await client.post(URL, json=fox | {"n": 2, "stream": True})
    raw = await client.post(URL, json=fox | {"n": 2}, headers={"Accept": "image/png"})
    assert refused(streamed, 400, "invalid_value")["param"] == "n"
    assert refused(raw, 400, "invalid_value")["param"] == "n"


async def test_accept_and_output_format_may_not_differ(client, refused, fox):
    response = await client.post(URL, json=fox | {"output_format": "webp"}, headers={"Accept": "image/png"})
    assert refused(response, 400, "invalid_value")["param"] == "output_format"


async def test_limits_of_the_settings_count(stuck, door, refused, fox):
    async with stuck(limits={"max_n": 2, "max_steps": 10, "prompt_tokens": 32}) as service, door(service.app) as client:
        for field, value in (("n", 3), ("num_inference_steps", 11)):
            error = refused(await client.post(URL, json=fox | {field: value}), 400, "invalid_value")
            assert f"{field} is {value}, the limit is {value - 1}" in error["message"]
        refused(await client.post(URL, json={"prompt": "a fox and a hen " * 10}), 400, "prompt_too_long")


@pytest.mark.parametrize("call", [("POST", URL, {"prompt": "a", "model": "sdxl"}), ("GET", "/v1/models/sdxl", None)])
async def test_an_unknown_model_lists_those_there_are(client, refused, call):
    method, path, body = call
    error = refused(await client.request(method, path, json=body), 404, "model_not_found")
    assert "z-image-turbo, gpt-image-1" in error["hint"]


async def test_a_starting_service_is_not_ready(stuck, door, refused, fox):
    async with stuck(ready=False) as service, door(service.app) as client:
        response = await client.post(URL, json=fox)
    refused(response, 503, "not_ready")
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_refuses_at_once(stuck, door, refused, fox, stream):
    async with stuck(queue={"max_depth": 1}) as service, door(service.app) as client:
        jobs = [asyncio.create_task(client.post(URL, json=fox))]
        await service.until(running=1)
        jobs.append(asyncio.create_task(client.post(URL, json=fox)))
        await service.until(running=1, queued=1)
        async with asyncio.timeout(1):
            response = await client.post(URL, json=fox | {"stream": stream})
        for job in jobs:
            job.cancel()
        await service.until(running=0, queued=0)
    refused(response, 503, "queue_full")
    assert int(response.headers["Retry-After"]) >= 1


async def test_an_impossible_deadline_is_refused_with_the_possible(client, refused):
    error = refused(await client.post(URL, json=LONG | {"deadline_ms": 1}), 503, "deadline_infeasible")
    assert re.search(r"earliest feasible is \d+", error["message"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_passes_expires_the_job(stuck, door, refused, fox, stream):
    async with stuck() as service, door(service.app) as client:
        response = await client.post(URL, json=fox | {"deadline_ms": 100, "stream": stream})
    error = refused(response, 503, "deadline_exceeded")
    assert error["param"] == "deadline_ms"


@pytest.mark.parametrize("stream", [False, True])
async def test_waiting_is_bounded_and_the_job_cancelled(stuck, door, refused, fox, stream):
    async with stuck(timeouts={"request_s": 0.1, "heartbeat_s": 60}) as service, door(service.app) as client:
        response = await client.post(URL, json=fox | {"stream": stream})
        await service.until(running=0, queued=0)
    refused(response, 503, "request_timeout")
    assert "0.1 s" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_cancelled_by_another_is_not_tried_again(client, service, refused, stream):
    request = asyncio.create_task(client.post(URL, json=LONG | {"n": 1, "stream": stream}))
    while (await service.status()).running == 0:
        await asyncio.sleep(0.01)
    [job_id] = [job.id for job in service._jobs.values() if not job.status.terminal]
    await service.cancel(job_id)
    response = await request
    refused(response, 503, "job_canceled")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ReplicaLost("lost too often"), 500, "replica_lost"),
        (DeadlineExceeded("too late", retry_after=7), 503, "deadline_exceeded"),
        (RuntimeError("/secret/path"), 500, "internal_error"),
    ],
)
async def test_a_failed_job_is_its_own_error(stuck, door, refused, fox, error, status, code):
    async with stuck(error) as service, door(service.app) as client:
        response = await client.post(URL, json=fox)
    refused(response, status, code)
    assert response.headers.get("Retry-After") == ("7" if status == 503 else None)


async def test_a_full_store_is_said_before_work_starts(service, settings, door, refused, fox, tmp_path):
    recorder, assets = Recorder(), LocalAssets(tmp_path, min_free_bytes=1 << 62)
    full = create_app(service, assets, service.prompts, settings, recorder=recorder)
    async with door(full) as client:
        refused(await client.post(URL, json=fox), 507, "store_full")
    assert (await service.status()).queued == 0
    tally = recorder.drain()
    assert tally.counts["zimage_refusals_total", ("z-image-turbo", "store_full")] == 1


async def test_an_unexpected_error_shows_nothing_of_the_inside(client, refused, fox, settings):
    answer = (await client.post(URL, json=fox | {"response_format": "url"})).json()["data"][0]
    [record] = settings.data.rglob(f"{answer['asset_id']}.json")
    record.unlink()
    record.mkdir()
    response = await client.get(answer["url"])
    error = refused(response, 500, "internal_error")
    assert error["message"] == "internal error"
    assert not re.search(r"Traceback|IsADirectoryError|/tmp|\.py", response.text)


async def test_problem_json_only_when_asked_for(client):
    response = await client.post(URL, json={"prompt": " "}, headers=PROBLEM)
    problem = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Bad Request", 400)
    assert (problem["detail"], problem["param"], problem["code"]) == ("prompt is blank", "prompt", "invalid_value")
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["fragment"]["text"] == " "


@pytest.mark.parametrize("path", ["/v1", "/v1/images", "/v1/images/generations/", "/v1/models/", "/healthz/x", "/%00"])
async def test_an_unknown_route_has_the_same_shape(client, refused, path):
    error = refused(await client.get(path), 404, "not_found")
    assert error["message"].startswith("no route GET /")


async def test_a_wrong_method_has_the_same_shape_on_every_route(app, client, refused):
    routes = [(path, method) for path, item in app.openapi()["paths"].items() for method in item]
    assert len(routes) >= 6
    for path, method in routes:
        response = await client.request("PATCH", path)
        assert method.upper() in response.headers["Allow"].split(", ")
        if path.startswith("/v2"):
            assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
            assert path.split("{")[0] in response.json()["error"]
        else:
            assert path.split("{")[0] in refused(response, 405, "method_not_allowed")["message"]


async def test_a_path_that_is_spelled_out_has_its_own_methods(client, refused):
    response = await client.get("/v1/assets/delete")
    refused(response, 404, "not_found")
    response = await client.put("/v1/assets/delete")
    refused(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


async def test_a_wrong_method_as_problem(client):
    response = await client.delete("/healthz", headers=PROBLEM)
    assert response.json()["title"] == "Method Not Allowed"
    assert response.headers["Allow"] == "GET, HEAD"
