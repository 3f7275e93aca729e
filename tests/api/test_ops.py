import asyncio

import pytest

from serve.api.app import create_app
from serve.messages import Phase, ReplicaState


async def test_alive(client):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.head("/healthz")).status_code == 200


async def test_ready(client):
    response = await client.get("/readyz")
    ready = response.json()
    assert response.status_code == 200
    assert (ready["ready"], ready["phase"], ready["progress"]) == (True, "ready", 1.0)
    assert (ready["denoisers"], ready["text_encoders"]) == (1, 1)


async def test_not_ready_says_the_phase(stuck, door):
    async with stuck(ready=False) as service, door(service.app) as client:
        loading = ReplicaState(replica_id="a", role="denoiser", phase=Phase.WARMING_UP, fraction=0.5)
        service.dispatcher.heartbeat(loading)
        service.dispatcher.heartbeat(ReplicaState(replica_id="b", role="text_encoder", phase=Phase.READY))
        response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["phase"] == "warming up"
    assert 0 < response.json()["progress"] < 1
    assert int(response.headers["Retry-After"]) >= 1


async def test_ready_counts_the_queue(stuck, door, fox):
    async with stuck() as service, door(service.app) as client:
        jobs = [asyncio.create_task(client.post("/v1/images/generations", json=fox)) for _ in range(3)]
        await service.until(running=1, queued=2)
        ready = (await client.get("/readyz")).json()
        for job in jobs:
            job.cancel()
        await service.until(running=0, queued=0)
    assert (ready["running"], ready["queued"]) == (1, 2)


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/docs", "/nope"])
async def test_a_request_id_is_taken_over(client, path):
    response = await client.get(path, headers={"X-Request-ID": "req-~!1"})
    assert response.headers.get_list("X-Request-ID") == ["req-~!1"]


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "with space", "ü", "a\tb"])
async def test_else_a_request_id_is_made(client, sent):
    headers = {} if sent is None else {"X-Request-ID": sent.encode()}
    made = [(await client.get("/healthz", headers=headers)).headers["X-Request-ID"] for _ in range(2)]
    assert made[0] != made[1]
    assert sent not in made


async def test_behind_ray_serve_the_request_id_is_only_used(service, settings, door):
    app = create_app(service, service.assets, service.prompts, settings, echo_request_id=False)
    async with door(app) as client:
        response = await client.get("/nope", headers={"X-Request-ID": "mine"})
    assert "X-Request-ID" not in response.headers
    assert response.json()["error"]["request_id"] == "mine"


async def test_docs_show_the_routes(client):
    assert "swagger" in (await client.get("/docs")).text.lower()


async def test_openapi_documents_every_error(client):
    schema = (await client.get("/openapi.json")).json()
    responses = schema["paths"]["/v1/images/generations"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "403", "404", "408", "413", "422", "429", "500", "503", "507"}
    assert set(schema["components"]["schemas"]) == {
        *("ErrorAnswer", "ErrorBody", "FragmentBody"),
        *("KServeError", "KServeNotReady"),
    }


async def test_the_documented_example_works(client):
    schema = (await client.get("/openapi.json")).json()
    body = schema["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert (await client.post("/v1/images/generations", json=body["example"])).status_code == 200


async def test_a_model_says_what_may_be_asked_of_it(client, refused):
    model = (await client.get("/v1/models")).json()["data"][0]
    limits, defaults = model["limits"], model["defaults"]
    largest = {"prompt": "a", "size": f"{limits['max_side_px']}x{limits['max_side_px']}", "num_inference_steps": 1}
    assert (await client.post("/v1/jobs", json=largest)).status_code == 202
    side = limits["max_side_px"] + limits["side_multiple_px"]
    for field, value in (
        ("size", f"{side}x{side}"),
        ("n", limits["max_n"] + 1),
        ("num_inference_steps", limits["max_steps"] + 1),
        ("size", f"{limits['min_side_px'] - limits['side_multiple_px']}x64"),
    ):
        error = refused(await client.post("/v1/jobs", json={"prompt": "a", field: value}), 400, "invalid_value")
        assert error["param"] == field
    job = (await client.post("/v1/jobs", json={"prompt": "a"})).json()
    assert {name: job["request"][name] for name in defaults} == defaults
    assert (await client.get(f"/v1/models/{model['id']}")).json() == model
