"""ControlNets through every door, and what is said where they cannot be used."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from PIL import Image, ImageDraw

from serve.api.app import create_app
from serve.errors import InvalidConfig
from serve.local import open_service
from serve.presets.catalog import parse
from serve.presets.hot import hot_presets
from serve.settings import EMBEDDED_FOLDER
from tests import control_files

SHIPPED = EMBEDDED_FOLDER / "controlnets" / "lines"
QUICK = {"num_inference_steps": 2, "seed": 5, "prompt": "a red fox on a yellow background"}

PRESETS = """
presets:
  - name: sketch
    title: {en: Sketch, zh: 草图}
    prompt: "a drawing of {prompt}"
    controlnet: lines
    controlnet_conditioning_scale: 0.4
    locked: [controlnet]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def api(settings, tmp_path_factory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("controlnets")
    lines = {"weights": str(control_files.write(folder / "lines", "plain")), "scale": 0.9}
    depth = {"weights": str(control_files.write(folder / "depth", "own", seed=2)), "masks": True}
    (folder / "presets.yaml").write_text(PRESETS, encoding="utf-8")
    changes = {
        "data": folder / "data",
        "presets": folder / "presets.yaml",
        "controlnets": {"lines": lines, "depth": depth},
    }
    own = type(settings).model_validate(settings.model_dump() | changes | {"cache": {"enabled": True}})
    async with open_service(own) as service:
        presets = hot_presets(own)
        await presets.open()
        app = create_app(service, service.assets, service.prompts, own, presets=presets)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client


def file(width: int = 96, height: int = 64, mode: str = "RGB", **how: Any) -> bytes:
    """An ellipse of lines."""
    image = Image.new(mode, (width, height))
    ImageDraw.Draw(image).ellipse((8, 8, width // 2, height - 8), outline="white", width=2)
    buffer = io.BytesIO()
    image.save(buffer, how.pop("format", "PNG"), **how)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


LINES = {"controlnet": "lines", "control_image": b64(file())}


async def generate(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    answer = await api.post("/v1/images/generations", json=QUICK | fields)
    assert answer.status_code == 200, answer.text
    return answer


async def drawn(api: httpx.AsyncClient, **fields: Any) -> np.ndarray:
    answer = await generate(api, **fields)
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(file))).astype(int)


async def job(api: httpx.AsyncClient, path: str = "/v1/jobs", **body: Any) -> dict[str, Any]:
    answer = await api.post(path, json=body, headers={"Prefer": "wait=60"})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


async def test_a_preset_may_name_one_for_pictures_that_are_brought_and_lock_it(api) -> None:
    quick = QUICK | {"preset": "sketch"}
    asked = await job(api, **quick, control_image=LINES["control_image"])
    assert (asked["request"]["controlnet"], asked["request"]["controlnet_conditioning_scale"]) == ("lines", 0.4)
    assert "controlnet" not in (await job(api, **quick, size="64x64"))["request"], "nothing was brought"
    own = await job(api, **quick, **LINES, controlnet_conditioning_scale=1.2)
    assert own["request"]["controlnet_conditioning_scale"] == 1.2, "that is not locked"
    refused = await api.post("/v1/jobs", json=quick | LINES | {"controlnet": "depth"})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "controlnet")
    assert "controlnet is 'depth', but preset 'sketch' fixes it at 'lines'" in error["message"]
    again = await job(api, f"/v1/jobs/{asked['id']}/rerun", prompt="a hare")
    assert again["request"]["prompt"] == "a drawing of a hare"
    assert (again["request"]["controlnet"], again["request"]["controlnet_conditioning_scale"]) == ("lines", 0.4)
    assert (await api.get("/v1/presets")).json()["data"][0]["controlnet"] == "lines"


async def test_a_preset_with_one_that_is_not_there_is_refused(settings) -> None:
    with pytest.raises(InvalidConfig, match=r"presets\[0\].controlnet.*there is no controlnet 'lines', but: none"):
        parse("presets.yaml", PRESETS, settings)


async def test_one_that_knows_masks_is_given_the_picture_and_the_mask(api) -> None:
    """And draws from noise: `strength` means nothing then."""
    begun = {"image": b64(file()), "mask": b64(file()), "control_image": b64(file()), "controlnet": "depth"}
    whole = await drawn(api, **begun | {"image": None, "mask": None})
    assert np.abs(whole - await drawn(api, **begun)).max() > 4
    answer = await generate(api, **begun, strength=0.5)
    assert answer.headers["X-Ignored-Parameters"] == "strength"
    asked = await job(api, **QUICK, **begun, strength=0.5)
    assert (asked["status"], asked["request"]["strength"]) == ("succeeded", None)
    assert asked["progress"] == {"step": 2, "steps": 2} | asked["progress"]
    again = await job(api, f"/v1/jobs/{asked['id']}/rerun", seed=9)
    names = ("image", "mask", "control_image", "controlnet", "strength")
    assert [again["request"][name] for name in names] == [asked["request"][name] for name in names]


async def test_another_says_which_one_knows_masks(api) -> None:
    begun = {"image": b64(file()), "mask": b64(file())}
    error = (await api.post("/v1/jobs", json=QUICK | LINES | begun)).json()["error"]
    assert error["message"] == "controlnet 'lines' and mask do not go together: it knows no masks"
    assert error["hint"].startswith("send one of: depth, or leave out the mask")


async def test_they_are_counted_by_name(api) -> None:
    await generate(api, **LINES, seed=41)
    told = (await api.get("/metrics")).text
    seen = dict(line.rsplit(" ", 1) for line in told.splitlines() if line.startswith("zimage_controlnet"))
    of = {
        dict(re.findall(r'(\w+)="([^"]*)"', name)).get("controlnet", ""): name for name in seen if "loads_total" in name
    }
    assert float(seen[of["lines"]]) >= 1
    assert float(seen[of["lines"].replace("loads", "images")]) >= 1
    assert float(seen[of["depth"].replace("loads", "evictions")]) == 0, "there before it happens"
    assert float(seen["zimage_controlnet_load_duration_seconds_count"]) >= 1


async def test_a_picture_has_the_size_of_the_one_it_follows(api) -> None:
    assert (await drawn(api, **LINES)).shape == (64, 96, 3)
    assert (await drawn(api, **LINES, size="64x64")).shape == (64, 64, 3)


async def test_what_is_followed_changes_the_picture_and_scale_0_does_not(api) -> None:
    plain = await drawn(api, size="96x64")
    controlled = [await drawn(api, **LINES), await drawn(api, **LINES | {"controlnet": "depth"})]
    controlled.append(await drawn(api, **LINES | {"control_image": b64(file(80, 80))}, size="96x64"))
    for at, one in enumerate(controlled):
        assert all(abs(one - other).max() > 4 for other in [plain, *controlled[:at]])
    assert abs(await drawn(api, **LINES, controlnet_conditioning_scale=0) - plain).max() <= 1


async def test_the_cache_tells_apart_controlnets_scales_and_pictures(api) -> None:
    body = LINES | {"seed": 77}
    asked = [
        ({}, "miss"),
        ({"controlnet_conditioning_scale": 0.9}, "hit"),  # left out it is the controlnet's own
        ({"control_image": b64(file(format="BMP", mode="RGB"))}, None),
        ({"control_image": b64(file(format="WEBP", lossless=True))}, "hit"),  # the same pixels in another file
        ({"controlnet_conditioning_scale": 0.5}, "miss"),
        ({"controlnet": "depth"}, "miss"),
        ({"control_image": b64(file(128, 64)), "size": "96x64"}, "miss"),
    ]
    for changes, expected in asked:
        answer = await api.post("/v1/images/generations", json=QUICK | body | changes)
        assert answer.headers.get("X-Cache") == expected, changes


async def test_a_job_tells_its_control_and_is_drawn_again_with_it(api) -> None:
    asked = (await job(api, **QUICK, **LINES))["request"]
    assert (asked["controlnet"], asked["controlnet_conditioning_scale"]) == ("lines", 0.9)
    assert asked["control_image"].startswith("input:")
    kept = await api.get(f"/v1/inputs/{asked['control_image'].removeprefix('input:')}")
    assert Image.open(io.BytesIO(kept.content)).size == (96, 64)
    first = await job(api, **QUICK, **LINES, cache="skip")
    again = await job(api, f"/v1/jobs/{first['id']}/rerun", controlnet_conditioning_scale=0.4)
    assert again["request"]["control_image"] == asked["control_image"]
    assert again["request"]["controlnet_conditioning_scale"] == 0.4
    without = await job(api, f"/v1/jobs/{first['id']}/rerun", controlnet=None)
    assert "controlnet" not in without["request"]


async def test_one_of_my_own_pictures_is_followed(api) -> None:
    asset = (await job(api, **QUICK, size="96x64"))["result"]["images"][0]["asset_id"]
    asked = await job(api, **QUICK, controlnet="lines", control_image=f"asset:{asset}")
    assert asked["request"]["size"] == "96x64"


async def test_a_picture_may_begin_with_one_and_follow_another(api) -> None:
    both = await drawn(api, **LINES, image=b64(file(64, 64)), strength=0.8)
    assert both.shape == (64, 64, 3)


async def test_a_form_and_openais_client_send_it_as_a_file(api) -> None:
    data = {key: str(value) for key, value in QUICK.items()} | {"controlnet": "lines", "strength": "0.8"}
    sent = await api.post("/v1/images/edits", data=data, files={"image": file(), "control_image": file()})
    assert sent.status_code == 200, sent.text
    json = QUICK | LINES | {"image": b64(file()), "strength": 0.8}
    same = await api.post("/v1/images/generations", json=json)
    assert same.json()["data"][0]["b64_json"] == sent.json()["data"][0]["b64_json"]
    openai = AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=api)
    extra = {key: value for key, value in (QUICK | LINES).items() if key != "prompt"}
    answer = await openai.images.generate(prompt=QUICK["prompt"], extra_body=extra)
    assert answer.size == "96x64"


async def test_kserve_rows_follow_one_picture(api) -> None:
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": [QUICK["prompt"]]},
        {"name": "steps", "datatype": "INT32", "shape": [1, 1], "data": [2]},
        {"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [5]},
    ]
    body = {"inputs": inputs, "outputs": [{"name": "image_bytes"}], "parameters": LINES}
    answer = await api.post("/v2/models/z-image-turbo/infer", json=body)
    assert answer.status_code == 200, answer.text
    plain = (await generate(api, **LINES)).json()["data"][0]["b64_json"]
    assert answer.json()["outputs"][0]["data"] == [plain]


async def test_hugging_faces_client_sends_it_among_the_parameters(api) -> None:
    fields = {name: value for name, value in (QUICK | LINES).items() if name != "prompt"}
    answer = await api.post("/hf/text-to-image", json={"inputs": QUICK["prompt"], "parameters": fields})
    assert answer.content == base64.b64decode((await generate(api, **LINES)).json()["data"][0]["b64_json"])


async def test_models_lists_them(api) -> None:
    (model, *aliases) = (await api.get("/v1/models")).json()["data"]
    known = [
        {"id": "lines", "scale": 0.9, "max_scale": 2.0, "masks": False},
        {"id": "depth", "scale": 0.75, "max_scale": 2.0, "masks": True},
    ]
    assert model["controlnets"] == known
    assert all("controlnets" not in alias for alias in aliases)


async def test_a_file_names_its_control(api) -> None:
    picture = Image.open(io.BytesIO(base64.b64decode((await generate(api, **LINES)).json()["data"][0]["b64_json"])))
    assert "ControlNet: lines:0.9" in picture.info["parameters"]


@pytest.mark.parametrize(
    ("fields", "code", "param", "told"),
    [
        ({"controlnet": "linse"}, "controlnet_not_found", "controlnet", "unknown controlnet 'linse'"),
        ({"controlnet": ""}, "controlnet_not_found", "controlnet", "unknown controlnet ''"),
        ({"controlnet": 3}, "invalid_value", "controlnet", "string"),
        ({"controlnet": None}, "invalid_value", "controlnet", "control_image is sent without controlnet"),
        ({"control_image": None}, "invalid_value", "control_image", "'lines' is sent without control_image"),
        ({"control_image": "https://a.b/c.png"}, "invalid_value", "control_image", "URLs are not fetched"),
        ({"control_image": "no"}, "invalid_value", "control_image", "control_image is not base64"),
        ({"control_image": ""}, "invalid_value", "control_image", "not a PNG, JPEG or WebP"),
        ({"control_image": b64(file()[:60])}, "invalid_value", "control_image", "cut short or damaged"),
        ({"control_image": "asset:01J00000000000000000000000-0"}, "not_found", "control_image", "no"),
        ({"controlnet_conditioning_scale": 2.5}, "invalid_value", "controlnet_conditioning_scale", "equal to 2"),
        ({"controlnet_conditioning_scale": -1}, "invalid_value", "controlnet_conditioning_scale", "equal to 0"),
        ({"image": b64(file()), "mask": b64(file())}, "invalid_value", "mask", "do not go together"),
    ],
)
async def test_a_bad_one_is_told(api, fields, code, param, told) -> None:
    for path in ("/v1/images/generations", "/v1/jobs"):
        answer = await api.post(path, json=QUICK | LINES | fields)
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == (code, param), error
        assert answer.status_code == (404 if code == "not_found" else 400)
        assert told in error["message"]
        if told.startswith("unknown"):
            assert "send one of: lines, depth" in error["hint"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (file(8000, 7000, "L", compress_level=9), "56000000 pixels"),
        (file(format="GIF"), "not a PNG, JPEG or WebP"),
        (file(format="WEBP", save_all=True, append_images=[Image.new("RGB", (96, 64), "red")]), "animated"),
    ],
)
async def test_a_control_picture_has_the_limits_of_input_pictures(api, data, told) -> None:
    answer = await api.post("/v1/jobs", json=QUICK | {"controlnet": "lines", "control_image": b64(data)})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "control_image"
    assert told in answer.json()["error"]["message"]


async def test_its_scale_without_one_has_no_effect(api) -> None:
    answer = await generate(api, size="64x64", controlnet_conditioning_scale=0.5)
    assert answer.headers["X-Ignored-Parameters"] == "controlnet_conditioning_scale"


async def test_a_service_without_controlnets_says_so(client) -> None:
    answer = await client.post("/v1/images/generations", json=QUICK | LINES)
    assert answer.status_code == 400
    assert "there are none" in answer.json()["error"]["hint"]
    answer = await client.post("/hf/text-to-image", json={"inputs": "a fox", "parameters": LINES})
    assert answer.json()["error"]["code"] == "controlnet_not_found"
