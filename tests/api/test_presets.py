"""Presets through every door, hot while it is open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from openai import AsyncOpenAI

from serve.api.app import create_app
from serve.hot import HotFiles
from serve.presets.hot import hot_presets

GOOD = """
presets:
  - name: sticker
    title: {en: Sticker, zh: 贴纸}
    prompt: "{prompt} on a COLOUR background"
    size: 64x64
    num_inference_steps: 2
    locked: [num_inference_steps]
    limits: {max_n: 2}
    banned: [gun, 武器]
styles:
  - {name: night, title: {en: Night, zh: 夜}, prompt: "{prompt} at night"}
model_aliases:
  - {name: gpt-sticker, preset: sticker}
"""
BAD = GOOD.replace("size: 64x64", "sise: 64x64")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "presets.yaml"
    path.write_text(GOOD.replace("COLOUR", "yellow"))
    return path


@pytest_asyncio.fixture(loop_scope="session")
async def preset_app(service, settings, file) -> AsyncIterator[FastAPI]:
    presets = hot_presets(settings.model_copy(update={"presets": file}))
    hot = HotFiles(presets)
    await hot.open()
    watching = asyncio.create_task(hot.watch())
    yield create_app(service, service.assets, service.prompts, settings, presets=presets, hot=hot)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest_asyncio.fixture(loop_scope="session")
async def presets(preset_app, door) -> AsyncIterator[httpx.AsyncClient]:
    async with door(preset_app) as client:
        yield client


async def test_a_preset_fills_up_what_is_left_out(presets, picture, corners_are):
    body = {"prompt": "a red fox", "preset": "sticker", "seed": 1}
    answer = (await presets.post("/v1/images/generations", json=body)).json()
    assert answer["size"] == "64x64"
    image = picture(answer["data"][0]["b64_json"])
    assert corners_are(image, (252, 214, 40))
    plain = {"prompt": "a red fox on a yellow background", "size": "64x64", "num_inference_steps": 2, "seed": 1}
    same = (await presets.post("/v1/images/generations", json=plain)).json()
    assert same["data"][0]["b64_json"] == answer["data"][0]["b64_json"]


async def test_openais_client_takes_a_preset_as_a_model(preset_app, serving):
    async with serving(preset_app) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.images.generate(model="gpt-sticker", prompt="a red fox")
        names = [model.id async for model in client.models.list()]
    assert answer.size == "64x64"
    assert "gpt-sticker" in names


async def test_a_job_keeps_what_it_was_accepted_with(presets, file):
    body = {"prompt": "a red fox", "preset": "sticker", "style_preset": "night", "seed": 1}
    job = (await presets.post("/v1/jobs", json=body)).json()
    file.write_text(GOOD.replace("COLOUR", "blue").replace("64x64", "96x96"))
    assert (await presets.post("/v1/admin/reload-config")).status_code == 200
    done = (await presets.get(f"/v1/jobs/{job['id']}", params={"wait": 30})).json()
    assert done["request"]["prompt"] == "a red fox at night on a yellow background"
    assert (done["request"]["size"], done["request"]["num_inference_steps"]) == ("64x64", 2)
    assert done["result"]["images"][0]["width"] == 64
    assert (done["preset"]["name"], done["preset"]["style_preset"]) == ("sticker", "night")
    assert done["preset"]["prompt"] == "a red fox"
    found = (await presets.get("/v1/jobs", params={"q": "yellow"})).json()["data"]
    assert done["id"] not in [job["id"] for job in found]  # those are not the user's words


async def rerun(presets, job, **overrides) -> dict:
    return (await presets.post(f"/v1/jobs/{job['id']}/rerun", json=overrides)).json()


async def test_a_rerun_is_the_same_but_a_new_prompt_goes_into_the_preset_of_today(presets, file):
    body = {"prompt": "a red fox", "preset": "sticker", "seed": 1, "size": "80x80"}
    job = (await presets.post("/v1/jobs", json=body)).json()
    file.write_text(GOOD.replace("COLOUR", "blue"))
    await presets.post("/v1/admin/reload-config")
    assert (await rerun(presets, job))["request"] == job["request"]
    changed = (await rerun(presets, job, prompt="a cat"))["request"]
    assert (changed["prompt"], changed["size"], changed["seed"]) == ("a cat on a blue background", "80x80", 1)
    plain = (await rerun(presets, job, preset=None))["request"]
    assert (plain["prompt"], plain["num_inference_steps"]) == ("a red fox", 8)


async def test_a_preset_that_has_changed_does_not_change_what_a_key_stands_for(presets, file):
    body, key = {"prompt": "a red fox", "preset": "sticker", "seed": 1}, {"Idempotency-Key": "preset-key"}
    job = (await presets.post("/v1/jobs", json=body, headers=key)).json()
    file.write_text(GOOD.replace("COLOUR", "blue").replace("64x64", "96x96"))
    await presets.post("/v1/admin/reload-config")
    again = await presets.post("/v1/jobs", json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    other = await presets.post("/v1/jobs", json=body | {"size": "64x64"}, headers=key)
    assert other.status_code == 422


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"preset": "stiker"}, "preset", "unknown preset 'stiker'"),
        ({"style_preset": "nigth"}, "style_preset", "unknown style_preset 'nigth'"),
        (
            {"num_inference_steps": 9},
            "num_inference_steps",
            "num_inference_steps is '9', but preset 'sticker' fixes it at 2",
        ),
        ({"n": 3}, "n", "n is 3, the limit of preset 'sticker' is 2"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs"])
async def test_what_a_preset_refuses(presets, refused, path, change, param, message):
    body = {"prompt": "a fox", "preset": "sticker"} | change
    error = refused(await presets.post(path, json=body), 400, "invalid_value")
    assert error["param"] == param
    assert error["message"] == message
    assert error["hint"]


async def test_a_banned_word_is_shown_where_the_user_wrote_it(presets, refused):
    for prompt, text in (("🦊 with a ＧＵＮ", "ＧＵＮ"), ("一只拿着武器的狐狸", "武器")):
        body = {"prompt": prompt, "preset": "sticker", "style_preset": "night"}
        error = refused(await presets.post("/v1/images/generations", json=body), 400, "invalid_value")
        start, end = error["fragment"]["start"], error["fragment"]["end"]
        assert prompt[start:end] == text == error["fragment"]["text"]


async def test_a_long_prompt_is_cut_in_the_users_own_words(presets, refused):
    prompt = "a fox and " * 300
    body = {"prompt": prompt, "preset": "sticker", "style_preset": "night"}
    error = refused(await presets.post("/v1/images/generations", json=body), 400, "prompt_too_long")
    fragment = error["fragment"]
    assert fragment["text"] == prompt[fragment["start"] : fragment["end"]]
    assert fragment["end"] == len(prompt)
    assert "the words of preset 'sticker' and style 'night' included" in error["message"]
    kept = body | {"prompt": prompt[: fragment["start"]]}
    assert (await presets.post("/v1/jobs", json=kept)).status_code == 202


async def test_a_blank_prompt_is_blank_in_a_preset_too(presets, refused):
    error = refused(await presets.post("/v1/jobs", json={"prompt": " \n", "preset": "sticker"}), 400, "invalid_value")
    assert error["fragment"] == {"start": 0, "end": 2, "text": " \n"}


async def test_the_list_shows_presets_as_they_come_out(presets):
    answer = await presets.get("/v1/presets")
    (sticker,) = answer.json()["data"]
    assert sticker["title"] == {"en": "Sticker", "zh": "贴纸"}
    assert (sticker["size"], sticker["num_inference_steps"], sticker["guidance_scale"]) == ("64x64", 2, 0.0)
    assert sticker["quality"]["high"] == 12
    assert sticker["limits"] == {"max_n": 2, "max_side_px": 256, "max_steps": 50}
    assert sticker["locked"] == ["num_inference_steps"]
    assert "banned" not in json.dumps(sticker)
    assert [style["name"] for style in answer.json()["styles"]] == ["night"]
    assert answer.json()["version"]["refused"] is None


async def test_the_list_has_a_tag_that_changes_with_it(presets, file):
    tag = (await presets.get("/v1/presets")).headers["ETag"]
    assert (await presets.get("/v1/presets", headers={"If-None-Match": tag})).status_code == 304
    file.write_text(GOOD.replace("COLOUR", "blue"))
    await presets.post("/v1/admin/reload-config")
    assert (await presets.get("/v1/presets", headers={"If-None-Match": tag})).status_code == 200


async def test_a_bad_file_is_refused_with_its_line_and_the_old_one_stays(presets, refused, file):
    before = (await presets.get("/v1/presets")).json()
    file.write_text(BAD)
    error = refused(await presets.post("/v1/admin/reload-config"), 400, "invalid_config")
    line = BAD.splitlines().index("    sise: 64x64") + 1
    told = f"presets.yaml:{line}: presets[0].sise: unknown key; did you mean 'size'?"
    assert error["message"] == told
    after = (await presets.get("/v1/presets")).json()
    assert after["data"] == before["data"]
    assert after["version"]["hash"] == before["version"]["hash"]
    assert after["version"]["refused"]["message"] == told
    assert (await presets.post("/v1/jobs", json={"prompt": "a fox", "preset": "sticker"})).status_code == 202


async def test_a_changed_file_is_at_work_without_being_asked(presets, file):
    file.write_text(GOOD.replace("sticker", "label"))
    async with asyncio.timeout(20):
        while (await presets.get("/v1/presets")).json()["data"][0]["name"] != "label":
            await asyncio.sleep(0.05)


async def test_fifty_reloads_under_load_fail_no_request(preset_app, serving, file):
    """Good and bad files in turn, while clients ask for pictures, jobs and the list."""
    statuses: list[int] = []
    reloads: list[int] = []

    async def ask(client: httpx.AsyncClient) -> None:
        body = {"prompt": "a fox", "preset": "sticker", "size": "64x64"}
        while len(reloads) < 50:
            statuses.append((await client.post("/v1/images/generations", json=body)).status_code)
            statuses.append((await client.post("/v1/jobs", json=body)).status_code)
            statuses.append((await client.get("/v1/presets")).status_code)

    async with serving(preset_app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(4)]
        for i in range(50):
            file.write_text(BAD if i % 2 else GOOD.replace("COLOUR", f"{'red' if i % 4 else 'blue'}") + f"# {i}\n")
            reloads.append((await client.post("/v1/admin/reload-config")).status_code)
            seen = len(statuses)
            while len(statuses) < seen + 3:
                await asyncio.sleep(0.01)
        await asyncio.gather(*asking)
    assert reloads == [200, 400] * 25
    assert len(statuses) >= 100
    assert set(statuses) <= {200, 202}


# --- pictures


async def test_a_presets_picture_is_found_kept_for_ever_and_changes_with_its_file(presets, file):
    picture = file.parent / "pictures" / "sticker.webp"
    picture.parent.mkdir()
    shipped = sorted((Path("config") / "pictures" / "embedded").glob("*.webp"))
    picture.write_bytes(shipped[0].read_bytes())
    file.write_text(file.read_text().replace("size: 64x64", "size: 64x64\n    picture: pictures/sticker.webp"))
    await presets.post("/v1/admin/reload-config")
    listed = (await presets.get("/v1/presets")).json()
    url = listed["data"][0]["picture_url"]
    found = await presets.get(url)
    assert (found.content, found.headers["Content-Type"]) == (picture.read_bytes(), "image/webp")
    assert "immutable" in found.headers["Cache-Control"]
    plain = await presets.get(url.partition("?")[0], headers={"If-None-Match": found.headers["ETag"]})
    assert (plain.status_code, plain.headers["Cache-Control"]) == (304, "private, no-cache")
    picture.write_bytes(shipped[1].read_bytes())
    changed = (await presets.get("/v1/presets")).json()["data"][0]["picture_url"]
    assert changed != url
    assert (await presets.get(changed)).content == picture.read_bytes()
    picture.unlink()
    assert (await presets.get("/v1/presets")).json()["data"][0]["picture_url"] is None
    assert listed["styles"][0]["picture_url"] is None
    for path in ("/v1/presets/sticker/picture", "/v1/presets/none/picture", "/v1/styles/night/picture"):
        assert (await presets.get(path)).status_code == 404


@pytest.mark.parametrize("path", ["/etc/x.png", "../x.png", "a/../x.png", "x.svg", "x", ".x.png", "a//x.png"])
async def test_a_picture_lies_beside_the_file(presets, file, refused, path):
    file.write_text(file.read_text().replace("size: 64x64", f"size: 64x64\n    picture: {path}"))
    error = refused(await presets.post("/v1/admin/reload-config"), 400, "invalid_config")
    assert "picture" in error["message"]


async def test_the_pictures_that_are_shipped_are_what_the_command_draws(http, base_url, tmp_path):
    import io

    import numpy as np
    from PIL import Image

    from serve.preset_pictures import draw_pictures

    drawn = await asyncio.to_thread(draw_pictures, base_url, tmp_path, None, None)
    shipped = Path("config/pictures/embedded")
    assert {path.name for path in drawn} == {path.name for path in shipped.iterdir()}
    for path in drawn:
        ours, theirs = [
            np.asarray(Image.open(io.BytesIO(one.read_bytes())), float) for one in (path, shipped / path.name)
        ]
        assert np.abs(ours - theirs).mean() < 8, path.name
        assert (shipped / path.name).stat().st_size <= 4096
    listed = (await http.get("/v1/presets")).json()
    assert all(one["picture_url"] for one in listed["data"] + listed["styles"])
