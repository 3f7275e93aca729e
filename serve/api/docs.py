"""What /openapi.json says beyond the signatures: bodies read by hand, media types, headers and every error."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serve.api.generation import GenerationBody


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
    403: "the link is unsigned, changed or expired",
    404: "no such thing",
    413: "the body is too large",
    416: "the range is outside the picture",
    500: "our fault",
    503: "not ready, queue full, deadline, or timed out: `Retry-After` says when to try again",
    507: "the asset store is full",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": _ERRORS[status]} for status in statuses}


def _images(description: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {f"image/{name}": binary for name in ("png", "jpeg", "webp")}
    return {"description": description, "content": content}


def _generated() -> dict[str, Any]:
    images = _images("the pictures as JSON, one as raw bytes by `Accept`, or events where `stream` is true")
    json = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return images | {"content": json | images["content"]}


GENERATION: dict[str, Any] = {
    "summary": "Draw pictures from a prompt",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": GenerationBody.model_json_schema()}},
        }
    },
    "responses": {200: _generated(), **_errors(400, 404, 413, 500, 503, 507)},
}
MODELS: dict[str, Any] = {"summary": "The models there are", "responses": _errors(500)}
MODEL: dict[str, Any] = {"summary": "One model", "responses": _errors(404, 500)}
ASSET: dict[str, Any] = {
    "summary": "A picture by its signed link",
    "responses": {
        200: _images("the picture"),
        206: _images("a part of it, by `Range`"),
        304: {"description": "unchanged, by `If-None-Match`"},
        **_errors(403, 404, 416, 500),
    },
}


class DocumentedApp(FastAPI):
    """FastAPI documents a 422 on every route with parameters; this service never answers one."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema
