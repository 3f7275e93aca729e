"""Two models behind one door: chosen by `model`, each with its own limits, defaults, presets and figures."""

from __future__ import annotations

import pytest

from serve.api.app import create_app
from serve.local import open_service
from serve.messages import Phase, ReplicaState
from serve.presets.hot import hot_presets
from serve.settings import Settings
from tests.api.conftest import session_fixture

TURBO, BASE = "z-image-turbo", "z-image-base"
MODELS = {
    BASE: {
        "model_aliases": ["z-image"],
        "default_size_px": 64,
        "max_side_px": 128,
        "default_steps": 6,
        "default_guidance": 4,
        "default_cfg_normalization": 1,
        "limits": {"max_steps": 20, "max_n": 2},
        "adapters": {"blueprint": "serve/engine/tiny/adapters/blueprint.safetensors"},
    }
}
PRESETS = """
presets:
  - {name: quick, title: {en: Quick, zh: 快}, size: 64x64, num_inference_steps: 2}
  - {name: careful, title: {en: Careful, zh: 细}, models: [z-image-base], num_inference_steps: 9, adapter: blueprint}
model_aliases:
  - {name: slow-one, model: z-image-base, preset: careful}
"""


@session_fixture
async def two(tmp_path_factory):
    """The application, and its service."""
    data = tmp_path_factory.mktemp("two")
    (data / "presets.yaml").write_text(PRESETS)
    settings = Settings(data=data, presets=data / "presets.yaml", warmup_sizes_px=(64,), models=MODELS)
    presets = hot_presets(settings)
    await presets.open()
    assert presets.status.error is None
    async with open_service(settings) as service:
        tokenizers = service.tokenizers
        yield (
            create_app(service, service.assets, service.prompts, settings, presets=presets, tokenizers=tokenizers),
            service,
        )


@pytest.fixture
async def client(two, door):
    async with door(two[0]) as client:
        yield client


async def job(client, **body) -> dict:
    response = await client.post("/v1/jobs", json={"prompt": "a red fox"} | body, headers={"Prefer": "wait=30"})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("asked", "model"), [(None, TURBO), (TURBO, TURBO), ("dall-e-3", TURBO), (BASE, BASE), ("z-image", BASE)]
)
async def test_a_name_chooses_the_model_and_its_defaults(client, asked, model):
    done = await job(client, model=asked, seed=2)
    assert done["status"] == "succeeded"
    request = done["request"]
    assert request["model"] == model
    size, steps, guidance = ("64x64", 6, 4) if model == BASE else ("128x128", 8, 0)
    assert (request["size"], request["num_inference_steps"], request["guidance_scale"]) == (size, steps, guidance)


async def test_a_model_that_is_not_there_is_refused_with_those_that_are(client, refused):
    response = await client.post("/v1/images/generations", json={"prompt": "a", "model": "z-image-huge"})
    error = refused(response, 404, "model_not_found")
    assert error["param"] == "model"
    assert all(name in error["hint"] for name in (TURBO, BASE, "z-image", "slow-one"))


@pytest.mark.parametrize(
    ("field", "value", "fits"),
    [("size", "256x256", TURBO), ("num_inference_steps", 30, TURBO), ("n", 3, TURBO), ("adapter", "blueprint", BASE)],
)
async def test_limits_are_the_models_own(client, refused, field, value, fits):
    other = BASE if fits == TURBO else TURBO
    answers = {
        model: await client.post("/v1/jobs", json={"prompt": "a fox", "model": model, field: value})
        for model in (fits, other)
    }
    assert answers[fits].status_code == 202, answers[fits].text
    await client.post(f"/v1/jobs/{answers[fits].json()['id']}/cancel")
    assert refused(answers[other], 400, answers[other].json()["error"]["code"])["param"] == field


async def test_the_list_of_models_says_what_each_takes(client):
    models = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
    assert next(iter(models)) == TURBO
    assert {name: models[name]["root"] for name in (TURBO, BASE, "dall-e-3", "z-image", "slow-one")} == {
        TURBO: TURBO,
        BASE: BASE,
        "dall-e-3": TURBO,
        "z-image": BASE,
        "slow-one": BASE,
    }
    assert (models[TURBO]["limits"]["max_side_px"], models[BASE]["limits"]["max_side_px"]) == (256, 128)
    assert (models[TURBO]["defaults"]["num_inference_steps"], models["z-image"]["defaults"]["size"]) == (8, "64x64")
    assert [adapter["id"] for adapter in models[BASE]["adapters"]] == ["blueprint"]
    assert (await client.get(f"/v1/models/{BASE}")).json() == models[BASE]


async def test_a_preset_belongs_to_its_model(client, refused):
    told = {
        model: (await client.get("/v1/presets", params={"model": model} if model else {})).json()
        for model in (None, TURBO, BASE)
    }
    assert told[None] == told[TURBO]
    names = {model: [preset["name"] for preset in told[model]["data"]] for model in (TURBO, BASE)}
    assert names == {TURBO: ["quick"], BASE: ["quick", "careful"]}
    assert told[BASE]["data"][0]["guidance_scale"] == 4
    response = await client.post("/v1/jobs", json={"prompt": "a fox", "model": TURBO, "preset": "careful"})
    assert refused(response, 400, response.json()["error"]["code"])["param"] == "preset"
    refused(await client.get("/v1/presets", params={"model": "nope"}), 404, "model_not_found")


@pytest.mark.parametrize("body", [{"preset": "careful"}, {"model": "slow-one"}, {"model": BASE, "preset": "careful"}])
async def test_a_preset_of_one_model_alone_chooses_it(client, body):
    request = (await job(client, seed=3, **body))["request"]
    assert (request["model"], request["num_inference_steps"], request["adapter"]) == (BASE, 9, "blueprint")


async def test_one_queue_says_how_each_model_stands(client):
    for path in ("/v1/queue", "/v1/stats", "/readyz"):
        answer = await client.get(path)
        assert answer.status_code == 200
        models = answer.json()["models"]
        assert list(models) == [TURBO, BASE]
        assert all(of["ready"] and of["denoisers"] == of["text_encoders"] == 1 for of in models.values())
    replicas = (await client.get("/v1/stats")).json()["replicas"]
    assert sorted((replica["model"], replica["role"]) for replica in replicas) == [
        (model, role) for model in (BASE, TURBO) for role in ("denoiser", "text_encoder")
    ]


async def test_each_model_and_its_parts_are_there_for_kserve(client):
    index = (await client.post("/v2/repository/index")).json()
    assert [entry["name"] for entry in index] == [
        *(TURBO, "text_encoder", "denoiser"),
        *(BASE, f"text_encoder-{BASE}", f"denoiser-{BASE}"),
    ]
    assert {entry["state"] for entry in index} == {"READY"}
    for entry in index:
        assert (await client.get(f"/v2/models/{entry['name']}")).json()["name"] == entry["name"]
        assert (await client.get(f"/v2/models/{entry['name']}/ready")).status_code == 200
        assert (await client.get(f"/v2/models/{entry['name']}/stats")).json()["model_stats"][0]["name"] == entry["name"]
    config = (await client.get(f"/v2/models/{BASE}/config")).json()
    steps = [step["model_name"] for step in config["ensemble_scheduling"]["step"]]
    assert steps == [f"text_encoder-{BASE}", f"denoiser-{BASE}"]
    assert config["parameters"]["max_side_px"]["string_value"] == "128"
    assert config["max_batch_size"] == 2
    part = (await client.get(f"/v2/models/denoiser-{BASE}/config")).json()
    assert part["instance_group"] == [{"name": f"denoiser-{BASE}_0", "kind": "KIND_CPU", "count": 1}]


async def test_kserve_draws_with_the_model_of_the_path(client):
    before = (await client.get("/v2/models/stats")).json()["model_stats"]
    answer = await client.post(f"/v2/models/{BASE}/generate", json={"prompt": "a kserve fox", "seed": 4})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_name"] == BASE
    request = (await client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}")).json()["request"]
    assert (request["model"], request["size"], request["num_inference_steps"]) == (BASE, "64x64", 6)
    grown = {
        after["name"]: after["inference_count"] - earlier["inference_count"]
        for earlier, after in zip(before, (await client.get("/v2/models/stats")).json()["model_stats"], strict=True)
    }
    assert (grown[BASE], grown[f"denoiser-{BASE}"], grown[TURBO], grown["denoiser"]) == (1, 1, 0, 0)
    assert (await client.post(f"/v2/models/{BASE}/generate", json={"prompt": "a", "steps": 21})).status_code == 400


async def test_pictures_of_all_models_are_in_one_gallery(client):
    made = {(await job(client, model=model, prompt="one gallery for both", seed=5))["id"] for model in (TURBO, BASE)}
    listed = (await client.get("/v1/assets", params={"q": "one gallery for both"})).json()["data"]
    assert {picture["job_id"] for picture in listed} == made


async def test_equal_requests_of_two_models_are_not_one(client):
    same = {"prompt": "the same for both", "seed": 6, "size": "64x64", "num_inference_steps": 2, "guidance_scale": 0}
    first = [await job(client, model=model, **same) for model in (TURBO, BASE)]
    again = [await job(client, model=model, **same) for model in (TURBO, BASE)]
    assert [done["result"]["cache"] for done in first] == ["miss", "miss"]
    assert [done["result"]["cache"] for done in again] == ["hit", "hit"]


async def test_a_model_that_is_not_ready_answers_for_itself_alone(stuck, door):
    async with stuck(models={BASE: {}}) as service, door(service.app) as client:
        early = await client.get("/readyz")
        for role in ("text_encoder", "denoiser"):
            state = ReplicaState(replica_id=f"{role}-b", model=BASE, role=role, phase=Phase.READY, slots=1)
            service.dispatcher.heartbeat(state)
        both = await client.get("/readyz")
        service.dispatcher._pools.of(BASE).lose("denoiser-b")
        late = await client.get("/readyz")
        ready = {name: (await client.get(f"/v2/models/{name}/ready")).status_code for name in (TURBO, BASE)}
        whole = await client.get("/v2/health/ready")
    assert (early.status_code, both.status_code, late.status_code, whole.status_code) == (503, 200, 200, 200)
    assert {name: of["ready"] for name, of in late.json()["models"].items()} == {TURBO: True, BASE: False}
    assert ready == {TURBO: 200, BASE: 503}
