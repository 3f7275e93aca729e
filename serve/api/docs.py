"""What /openapi.json says beyond the signatures: bodies read by hand, media types, headers and every error."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serve.api.generation import GenerationBody
from serve.api.job_body import JobBody
from serve.api.key_body import KeyBody


class FragmentBody(BaseModel):
    """In code points: `prompt[start:end] == text`."""

    start: int
    end: int
    text: str


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str
    hint: str | None
    request_id: str
    fragment: FragmentBody | None = None


class ErrorAnswer(BaseModel):
    error: ErrorBody


_ERRORS = {
    400: "a field is wrong: `param` names it, `message` the limit, `hint` what to do",
    401: "no valid credentials",
    403: "the role may not do this, or the link is unsigned, changed or expired",
    404: "no such thing",
    408: "the body did not arrive in time",
    413: "the body is too large",
    416: "the range is outside the picture",
    422: "the `Idempotency-Key` was sent before with another body",
    429: "over the quota: `Retry-After` says when there is more",
    500: "our fault",
    502: "the OpenID provider's answer proves nothing",
    503: "not ready, queue full, deadline, or timed out: `Retry-After` says when to try again",
    507: "the asset store is full",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _ERRORS[status]} for status in statuses}


def images(description: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {f"image/{name}": binary for name in ("png", "jpeg", "webp")}
    return {"description": description, "content": content}


def event_stream() -> dict[str, Any]:
    """The content of an answer of server-sent events, each with JSON in its data; as FastAPI describes its own."""
    data = {"type": "string", "contentMediaType": "application/json"}
    event = {"type": "object", "properties": {"event": {"type": "string"}, "id": {"type": "string"}, "data": data}}
    return {"text/event-stream": {"itemSchema": event | {"required": ["data"]}}}


def links(parameter: str, pointer: str, *routes: str) -> dict[str, Any]:
    """What the answer has at `pointer` is the `parameter` of other routes, such as "GET /v1/jobs/{job_id}"."""
    value = {parameter: f"$response.body#{pointer}"}
    return {"links": {re.sub(r"[^a-z0-9]+", "_", route.lower()).strip("_"): _link(route, value) for route in routes}}


def _link(route: str, parameters: dict[str, str]) -> dict[str, Any]:
    method, path = route.split(" ")
    escaped = path.replace("~", "~0").replace("/", "~1")
    return {"operationRef": f"#/paths/{escaped}/{method.lower()}", "parameters": parameters}


def generated() -> dict[str, Any]:
    pictures = images("the pictures as JSON, one as raw bytes by `Accept`, or events where `stream` is true")
    json = {"application/json": {"schema": {"type": "object"}}}
    return pictures | {"content": json | event_stream() | pictures["content"]}


def _body(schema: dict[str, Any], required: bool = True) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _overrides() -> dict[str, Any]:
    schema = JobBody.model_json_schema()
    return {key: value for key, value in schema.items() if key != "required"} | {"title": "ImageJobOverrides"}


def hf_parameters(**more: Any) -> dict[str, Any]:
    """Those of a generation, but for what Hugging Face says in other words, or has no word for."""
    known = GenerationBody.model_json_schema()["properties"]
    own = {name: known[name] for name in known if name not in ("prompt", "size", "n", "stream", "response_format")}
    side = {"type": "integer", "multipleOf": 16, "minimum": 64}
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": own | {"width": side, "height": side} | more,
                "dependentRequired": {"width": ["height"], "height": ["width"]},
            },
            {"type": "null"},
        ]
    }


def _json(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}


_OF_A_JOB = links(
    "job_id",
    "/id",
    "GET /v1/jobs/{job_id}",
    "GET /v1/jobs/{job_id}/events",
    "POST /v1/jobs/{job_id}/cancel",
    "POST /v1/jobs/{job_id}/rerun",
    "DELETE /v1/jobs/{job_id}",
)
_OF_A_MODEL = links("model", "/data/0/id", "GET /v1/models/{model}")
_OF_A_PICTURE = links(
    "asset_id",
    "/data/0/id",
    "GET /v1/assets/{asset_id}",
    "GET /v1/assets/{asset_id}/thumbnail",
    "GET /v1/assets/{asset_id}/metadata",
    "DELETE /v1/assets/{asset_id}",
)
_TAKEN = {
    200: _json("the job, ended within `Prefer: wait`, or replayed"),
    202: _json("the job, with its `Location`") | _OF_A_JOB,
}

GENERATION: dict[str, Any] = {
    "summary": "Draw pictures from a prompt",
    "openapi_extra": _body(GenerationBody.model_json_schema()),
    "responses": {200: generated(), **errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 507)},
}
TEXT_TO_IMAGE: dict[str, Any] = {
    "summary": "Draw one picture, as Hugging Face's clients ask for it",
    "openapi_extra": _body(
        {
            "title": "TextToImage",
            "type": "object",
            "required": ["inputs"],
            "properties": {"inputs": {"type": "string"}, "parameters": hf_parameters()},
        }
    ),
    "responses": {200: images("the picture"), **errors(400, 401, 403, 404, 408, 413, 429, 500, 503, 507)},
}
CREATE_JOB: dict[str, Any] = {
    "summary": "Have pictures drawn, without waiting",
    "status_code": 202,
    "openapi_extra": _body(JobBody.model_json_schema()),
    "responses": _TAKEN | errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 507),
}
RERUN_JOB: dict[str, Any] = {
    "summary": "Draw a job's pictures again, with changes",
    "status_code": 202,
    "openapi_extra": _body(_overrides(), required=False),
    "responses": _TAKEN | errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 507),
}
LIST_JOBS: dict[str, Any] = {"summary": "Your jobs, newest first", "responses": errors(400, 401, 403, 500, 503)}
GET_JOB: dict[str, Any] = {
    "summary": "One job, at once or when it ends",
    "responses": errors(400, 401, 403, 404, 500, 503),
}
CANCEL_JOB: dict[str, Any] = {
    "summary": "Stop a job",
    "responses": {202: _json("it runs and stops at its next step"), **errors(401, 403, 404, 500, 503)},
}
DELETE_JOB: dict[str, Any] = {
    "summary": "Stop a job and drop its record and pictures",
    "status_code": 204,
    "responses": errors(401, 403, 404, 500, 503),
}
JOB_EVENTS: dict[str, Any] = {
    "summary": "A job's events until it ends",
    "responses": {
        200: {"description": "server-sent events", "content": event_stream()},
        204: {"description": "the job has ended and you have seen its end"},
        **errors(400, 401, 403, 404, 500, 503),
    },
}
WEBHOOK_SECRET: dict[str, Any] = {
    "summary": "What your webhooks are signed with",
    "responses": errors(401, 403, 500, 503),
}
QUEUE: dict[str, Any] = {"summary": "The queue, and your jobs in it", "responses": errors(401, 403, 500, 503)}
MODELS: dict[str, Any] = {
    "summary": "The models there are",
    "responses": {200: _OF_A_MODEL, **errors(401, 403, 500, 503)},
}
MODEL: dict[str, Any] = {"summary": "One model", "responses": errors(401, 403, 404, 500, 503)}
PRESETS: dict[str, Any] = {
    "summary": "The presets and styles there are",
    "responses": {
        200: _json("presets, styles and model aliases, and the version at work"),
        304: {"description": "unchanged, by `If-None-Match`"},
        **errors(401, 403, 404, 500, 503),
    },
}
PRESET_PICTURE: dict[str, Any] = {
    "summary": "The small picture that stands for a preset or a style",
    "responses": {
        200: images("a small picture"),
        304: {"description": "unchanged, by `If-None-Match`"},
        **errors(401, 403, 404, 500, 503),
    },
}
CONFIG: dict[str, Any] = {
    "summary": "Which versions of the hot files are at work",
    "responses": errors(401, 403, 500, 503),
}
RELOAD: dict[str, Any] = {
    "summary": "Look at the hot files now, on every Gateway",
    "responses": errors(400, 401, 403, 500, 503),
}
METRICS: dict[str, Any] = {
    "summary": "Prometheus: the whole service, the same from every Gateway",
    "responses": errors(401, 403, 500, 503),
}
STATS: dict[str, Any] = {"summary": "Figures for people and status bars", "responses": errors(401, 403, 500, 503)}
ALL_JOBS: dict[str, Any] = {
    "summary": "Everybody's jobs that have not ended, in serving order",
    "responses": errors(400, 401, 403, 500, 503),
}
HOLD: dict[str, Any] = {"summary": "Hold the queue, or let it go on", "responses": errors(401, 403, 500, 503)}
ASSET: dict[str, Any] = {
    "summary": "A picture by its signed link",
    "responses": {
        200: images("the picture"),
        206: images("a part of it, by `Range`"),
        304: {"description": "unchanged, by `If-None-Match`"},
        **errors(401, 403, 404, 416, 500, 503),
    },
}
THUMBNAIL: dict[str, Any] = {
    "summary": "A picture made small, as WebP",
    "responses": {
        200: images("at most 256 pixels on its longest side"),
        304: {"description": "unchanged, by `If-None-Match`"},
        **errors(401, 403, 404, 500, 503),
    },
}
ASSET_METADATA: dict[str, Any] = {
    "summary": "What is known of one of your pictures",
    "responses": errors(401, 403, 404, 500, 503),
}
LIST_ASSETS: dict[str, Any] = {
    "summary": "Your pictures, newest first",
    "responses": {200: _OF_A_PICTURE, **errors(400, 401, 403, 500, 503)},
}
DELETE_ASSET: dict[str, Any] = {
    "summary": "Delete one of your pictures",
    "status_code": 204,
    "responses": errors(401, 403, 404, 500, 503),
}
DELETE_ASSETS: dict[str, Any] = {"summary": "Delete all your pictures", "responses": errors(400, 401, 403, 500, 503)}
DELETE_MANY_ASSETS: dict[str, Any] = {
    "summary": "Delete some of your pictures",
    "openapi_extra": _body(
        {
            "title": "AssetDeletion",
            "type": "object",
            "required": ["ids"],
            "properties": {"ids": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1000}},
        }
    ),
    "responses": errors(400, 401, 403, 408, 413, 500, 503),
}


ME: dict[str, Any] = {
    "summary": "Who you are here, and what is left of your quota",
    "responses": errors(401, 403, 500, 503),
}
CREATE_SESSION: dict[str, Any] = {
    "summary": "A cookie in place of credentials, for the page",
    "status_code": 201,
    "responses": {
        201: _json("who you are, with the `csrf_token` that writes need"),
        **errors(400, 401, 403, 500, 503),
    },
}
DELETE_SESSION: dict[str, Any] = {
    "summary": "Forget the cookie",
    "status_code": 204,
    "responses": errors(401, 403, 500, 503),
}
_REDIRECT = {"description": "to the provider, or back to the page"}
SIGN_IN_METHODS: dict[str, Any] = {"summary": "How one can come in", "responses": errors(500, 503)}
SIGN_IN_THERE: dict[str, Any] = {
    "summary": "Sign in at the OpenID provider, with a browser",
    "status_code": 302,
    "responses": {302: _REDIRECT, **errors(404, 500, 503)},
}
SIGN_IN_BACK: dict[str, Any] = {
    "summary": "Where the OpenID provider sends the browser back to",
    "status_code": 302,
    "responses": {302: _REDIRECT, **errors(400, 403, 404, 500, 502, 503)},
}
SIGN_OUT_THERE: dict[str, Any] = {
    "summary": "Sign out at the OpenID provider too",
    "status_code": 302,
    "responses": {302: _REDIRECT, **errors(404, 500, 503)},
}
KEYS: dict[str, Any] = {
    "summary": "All API keys, without the keys themselves",
    "responses": errors(401, 403, 500, 503),
}
CREATE_KEY: dict[str, Any] = {
    "summary": "Make an API key, which is shown this once",
    "status_code": 201,
    "openapi_extra": _body(KeyBody.model_json_schema()),
    "responses": {201: _json("the key"), **errors(400, 401, 403, 408, 413, 500, 503)},
}
REVOKE_KEY: dict[str, Any] = {"summary": "Revoke an API key", "responses": errors(401, 403, 404, 500, 503)}


class DocumentedApp(FastAPI):
    """FastAPI documents its own 422 on every route with parameters; this service never answers that one."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        for path in schema["paths"].values():
            for operation in path.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema
