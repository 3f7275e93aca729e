"""Adapters through every door, and what is said where they cannot be used."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from PIL import Image

from serve.api.app import create_app
from serve.local import open_service
from serve.presets.hot import hot_presets
from serve.settings import EMBEDDED_FOLDER

PRESETS = """
presets:
  - name: plan
    title: {en: Plan, zh: 蓝图}
    adapter: blueprint
    adapter_scale: 0.8
    locked: [adapter]
  - name: base
    title: {en: Base, zh: 基础}
    num_inference_steps: 4
    guidance_scale: 4
    cfg_normalization: 1
    cfg_truncation: 0.5
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(settings, tmp_path_factory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "presets.yaml").write_text(PRESETS, encoding="utf-8")
    blueprint = {"weights": str(EMBEDDED_FOLDER / "adapters" / "blueprint.safetensors"), "scale": 0.9}
    changes = {"data": folder / "data", "presets": folder / "presets.yaml", "adapters": {"blueprint": blueprint}}
    own = type(settings).model_validate(settings.model_dump() | changes | {"cache": {"enabled": True}})
    async with open_service(own) as service:
        presets = hot_presets(own)
        await presets.open()
        app = create_app(service, service.assets, service.prompts, own, presets=presets)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client


async def draw(api: httpx.AsyncClient, fox: dict[str, Any], **fields: Any) -> np.ndarray:
    body = fox | {"size": "64x64", "num_inference_steps": 4} | fields
    answer = await api.post("/v1/images/generations", json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


async def job(api: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await api.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


async def test_a_picture_with_the_adapter_is_blue(api, fox) -> None:
    plain, blue = await draw(api, fox), await draw(api, fox, adapter="blueprint")
    red, _, of_blue = plain.mean((0, 1))
    assert red > of_blue + 50
    red, _, of_blue = blue.mean((0, 1))
    assert of_blue > red + 50


async def test_an_identical_request_is_answered_from_the_cache_and_another_scale_is_not(api, fox) -> None:
    body = fox | {"seed": 77, "size": "64x64", "num_inference_steps": 2, "adapter": "blueprint"}
    seen = []
    for scale in (0.9, None, 0.5):
        answer = await api.post("/v1/images/generations", json=body | {"adapter_scale": scale})
        seen.append(answer.headers["X-Cache"])
    assert seen == ["miss", "hit", "miss"]  # left out it is the adapter's own, 0.9


async def test_a_job_tells_its_adapter_and_is_drawn_again_with_it(api, fox) -> None:
    asked = await job(api, fox | {"size": "64x64", "num_inference_steps": 2, "adapter": "blueprint"})
    assert asked["request"]["adapter"] == "blueprint"
    assert asked["request"]["adapter_scale"] == 0.9
    again = await api.post(f"/v1/jobs/{asked['id']}/rerun", json={"adapter_scale": 0.4})
    assert again.json()["request"]["adapter"] == "blueprint"
    assert again.json()["request"]["adapter_scale"] == 0.4


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"adapter": "bluprint"}, "adapter", "unknown adapter 'bluprint'"),
        ({"adapter": ""}, "adapter", "unknown adapter ''"),
        ({"adapter": 3}, "adapter", "string"),
        ({"adapter": "blueprint", "adapter_scale": 4.5}, "adapter_scale", "less than or equal to 4"),
        ({"adapter": "blueprint", "adapter_scale": "1"}, "adapter_scale", "number"),
        ({"cfg_truncation": 1.5, "guidance_scale": 2}, "cfg_truncation", "less than or equal to 1"),
        ({"cfg_normalization": -1, "guidance_scale": 2}, "cfg_normalization", "greater than or equal to 0"),
    ],
)
async def test_a_bad_one_is_told(api, fox, fields, param, told) -> None:
    for path in ("/v1/images/generations", "/v1/jobs"):
        answer = await api.post(path, json=fox | fields)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert told in error["message"]
        if told.startswith("unknown"):
            assert "send one of: blueprint" in error["hint"]


async def test_a_service_without_adapters_says_so(client, fox) -> None:
    answer = await client.post("/v1/images/generations", json=fox | {"adapter": "blueprint"})
    assert answer.status_code == 400
    assert "there are none" in answer.json()["error"]["hint"]


async def test_what_has_no_effect_is_named(api, fox) -> None:
    body = fox | {"size": "64x64", "num_inference_steps": 1, "adapter_scale": 0.5, "cfg_truncation": 0.5}
    answer = await api.post("/v1/images/generations", json=body | {"cfg_normalization": True})
    assert answer.headers["X-Ignored-Parameters"] == "adapter_scale, cfg_normalization, cfg_truncation"


async def test_models_lists_them(api) -> None:
    models = (await api.get("/v1/models")).json()["data"]
    assert models[0]["adapters"] == [{"id": "blueprint", "scale": 0.9, "max_scale": 4.0}]
    assert all("adapters" not in alias for alias in models[1:])
    openai = AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=api)
    assert (await openai.models.retrieve("z-image-turbo")).adapters == models[0]["adapters"]  # type: ignore[attr-defined]


async def test_a_preset_may_name_one_and_lock_it(api, fox) -> None:
    asked = await job(api, fox | {"size": "64x64", "num_inference_steps": 1, "preset": "plan"})
    assert (asked["request"]["adapter"], asked["request"]["adapter_scale"]) == ("blueprint", 0.8)
    refused = await api.post("/v1/jobs", json=fox | {"preset": "plan", "adapter": "other"})
    assert refused.json()["error"]["param"] == "adapter"


async def test_a_preset_may_set_how_guidance_works(api, fox) -> None:
    asked = await job(api, fox | {"size": "64x64", "preset": "base"})
    request = asked["request"]
    assert (request["guidance_scale"], request["num_inference_steps"]) == (4.0, 4)
    assert (request["cfg_normalization"], request["cfg_truncation"]) == (1.0, 0.5)
    own = await job(api, fox | {"size": "64x64", "preset": "base", "cfg_truncation": 0.25})
    assert own["request"]["cfg_truncation"] == 0.25


async def test_a_preset_with_an_adapter_that_is_not_there_is_refused(settings) -> None:
    from serve.errors import InvalidConfig
    from serve.presets.catalog import parse

    with pytest.raises(InvalidConfig, match=r"presets\[0\].adapter.*there is no adapter 'blueprint'"):
        parse("presets.yaml", PRESETS, settings)


def row(**parameters: Any) -> dict[str, Any]:
    shape = {"shape": [1, 1]}
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "data": ["a red fox on a yellow background"], **shape},
        {"name": "seed", "datatype": "INT64", "data": [1], **shape},
        {"name": "width", "datatype": "INT32", "data": [64], **shape},
        {"name": "height", "datatype": "INT32", "data": [64], **shape},
        {"name": "steps", "datatype": "INT32", "data": [4], **shape},
    ]
    return {"inputs": inputs, "outputs": [{"name": "generated_image"}], "parameters": parameters}


async def test_kserve_takes_it_as_a_parameter(api, fox) -> None:
    answer = await api.post("/v2/models/z-image-turbo/infer", json=row(adapter="blueprint"))
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    pixels = np.array(output["data"], dtype=np.uint8).reshape(output["shape"])[0]
    assert np.array_equal(pixels, await draw(api, fox, adapter="blueprint"))
    refused = await api.post("/v2/models/z-image-turbo/infer", json=row(adapter="no"))
    assert refused.status_code == 400
    assert "unknown adapter 'no'" in refused.json()["error"]


async def test_hugging_faces_door_takes_it_as_a_parameter(api, fox) -> None:
    parameters = {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 1, "adapter": "blueprint"}
    answer = await api.post("/hf/text-to-image", json={"inputs": fox["prompt"], "parameters": parameters})
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.array_equal(pixels, await draw(api, fox, adapter="blueprint"))
