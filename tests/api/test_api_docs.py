"""docs/api.md names every route and error, and its examples work."""

import asyncio
import base64
import json
import os
import re
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from PIL import Image

from serve.errors import ConfigError, ZImageError
from serve.messages import JobStatus

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
BODIES = re.findall(r"-d '(\{\"prompt.*?\})'", DOCS)


def codes(cls: type[ZImageError]) -> set[str]:
    return {cls.code}.union(*map(codes, cls.__subclasses__()))


def test_every_route_has_a_heading(app):
    headings = set(re.findall(r"^## ([A-Z]+ /\S+)", DOCS, re.MULTILINE))
    routes = {f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item}
    assert {re.sub(r"\{\w+\}", "{id}", route) for route in routes} == headings


def test_every_error_code_is_explained():
    raised = codes(ZImageError) - codes(ConfigError) - {"unavailable", "device_lost"}
    assert {code for code in raised if f"`{code}`" not in DOCS} == set()


def test_every_event_is_explained():
    types = {f"job.{status}" for status in JobStatus} - {"job.running"}
    types |= {"job.position", "job.started", "job.progress", "job.preview"}
    assert {event for event in types if f"`{event}`" not in DOCS} == set()


def test_only_what_takes_a_key_is_answered_422(app):
    operations = {
        path: [operation for operation in item.values() if "422" in operation["responses"]]
        for path, item in app.openapi()["paths"].items()
    }
    documented = {path for path, answered in operations.items() if answered}
    assert documented == {"/v1/images/edits", "/v1/images/generations", "/v1/jobs", "/v1/jobs/{job_id}/rerun"}


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/generations", "/v1/jobs"])
def test_every_field_is_explained(app, path):
    operation = app.openapi()["paths"][path]["post"]
    fields = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {field for field in fields if f"`{field}`" not in DOCS} == set()


def curls(heading: str) -> list[str]:
    section = DOCS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(curl.*?)^```", section, re.MULTILINE | re.DOTALL)


async def test_the_commands_of_edits_work_with_curl_itself(http, base_url, tmp_path):
    first = (await http.post("/v1/images/generations", json={"prompt": "a red fox", "seed": 1})).json()["data"][0]
    (tmp_path / "fox.png").write_bytes(base64.b64decode(first["b64_json"]))
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    mask.save(tmp_path / "mask.png")
    names = os.environ | {"ASSET_ID": first["asset_id"]}
    for command in curls("POST /v1/images/edits"):
        asked = command.replace("http://127.0.0.1:8000", base_url)
        curl = await asyncio.create_subprocess_shell(f"{asked.strip()} -sS", stdout=PIPE, cwd=tmp_path, env=names)
        answer = json.loads((await curl.communicate())[0])
        assert answer["size"] == "128x128", (command, answer)
    [command] = curls("GET /v1/inputs/{id}")
    began = (await http.get("/v1/assets?limit=1")).json()["data"][0]["image"]
    asked = command.replace("http://127.0.0.1:8000", base_url)
    input_id = began.removeprefix("input:")
    curl = await asyncio.create_subprocess_shell(asked, cwd=tmp_path, stderr=PIPE, env=names | {"INPUT_ID": input_id})
    await curl.communicate()
    with Image.open(tmp_path / input_id) as saved:
        assert saved.size == (128, 128)


@pytest.mark.parametrize("body", BODIES)
async def test_the_examples_work(client, body):
    response = await client.post("/v1/images/generations", content=body)
    assert response.status_code == (400 if "1024x1024" in body else 200)


async def test_the_error_of_the_example_is_the_one_shown(client):
    shown = json.loads(re.search(r'```json\n(\{\n  "error".*?\n\})\n```', DOCS, re.DOTALL)[1])["error"]
    [body] = [body for body in BODIES if "1024x1024" in body]
    answered = (await client.post("/v1/images/generations", content=body)).json()["error"]
    assert answered | {"request_id": shown["request_id"]} == shown
