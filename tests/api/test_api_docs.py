"""docs/api.md names every route and error, and its examples work."""

import json
import re
from pathlib import Path

import pytest

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
    assert documented == {"/v1/images/generations", "/v1/jobs", "/v1/jobs/{job_id}/rerun"}


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs"])
def test_every_field_is_explained(app, path):
    operation = app.openapi()["paths"][path]["post"]
    fields = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {field for field in fields if f"`{field}`" not in DOCS} == set()


@pytest.mark.parametrize("body", BODIES)
async def test_the_examples_work(client, body):
    response = await client.post("/v1/images/generations", content=body)
    assert response.status_code == (400 if "1024x1024" in body else 200)


async def test_the_error_of_the_example_is_the_one_shown(client):
    shown = json.loads(re.search(r'```json\n(\{\n  "error".*?\n\})\n```', DOCS, re.DOTALL)[1])["error"]
    [body] = [body for body in BODIES if "1024x1024" in body]
    answered = (await client.post("/v1/images/generations", content=body)).json()["error"]
    assert answered | {"request_id": shown["request_id"]} == shown
