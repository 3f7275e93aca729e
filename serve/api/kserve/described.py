"""What /openapi.json says of the routes under /v2."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serve.api.docs import event_stream, links
from serve.api.kserve.models import INPUTS, OUTPUTS, TensorSpec


class KServeError(BaseModel):
    error: str
    code: str
    request_id: str


class KServeNotReady(BaseModel):
    error: str
    ready: bool = False


_ERRORS = {
    400: "the request is wrong: `error` says where, and what to do",
    401: "no valid credentials",
    403: "the role may not do this",
    404: "no such model or version",
    408: "the body did not arrive in time",
    413: "the body is too large, or becomes so when it is inflated",
    429: "over the quota: `Retry-After` says when there is more",
    500: "our fault",
    501: "known to the protocol, and not offered",
    503: "not ready, queue full, or timed out: `Retry-After` says when to try again",
    507: "the asset store is full",
}
_DRAWING = (400, 401, 403, 404, 408, 413, 429, 500, 501, 503, 507)
_JSON_TYPES = {"BYTES": "string", "FP32": "number", "INT32": "integer", "INT64": "integer"}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": KServeError, "description": _ERRORS[status]} for status in statuses}


def _body(schema: dict[str, Any], required: bool = True) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _list(items: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "properties": items, "required": list(required)}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"type": _JSON_TYPES[spec.datatype]}


_PARAMETERS: dict[str, Any] = {"parameters": {"type": "object"}}
_INPUT: dict[str, Any] = {
    "name": {"enum": list(INPUTS)},
    "datatype": {"enum": list(_JSON_TYPES)},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "data": {"type": "array"},
    **_PARAMETERS,
}
_OUTPUT: dict[str, Any] = {"name": {"enum": list(OUTPUTS)}, **_PARAMETERS}
_INFER_BODY = {
    "title": "InferRequest",
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": _list(_INPUT, ("name", "datatype", "shape")),
        "outputs": _list(_OUTPUT, ("name",)),
        **_PARAMETERS,
    },
    "example": {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": ["a red fox"]}]},
}
_GENERATE_BODY = {
    "title": "GenerateRequest",
    "type": "object",
    "required": ["prompt"],
    "properties": {"id": {"type": "string"}, **_PARAMETERS} | {name: _tensor(spec) for name, spec in INPUTS.items()},
}
_INFERRED = {
    "description": "the outputs that were asked for, as JSON or behind it",
    "content": {
        "application/json": {"schema": {"type": "object"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
_EVENTS = {"description": "server-sent events", "content": event_stream()}
_UNREADY = {503: {"model": KServeNotReady, "description": "not yet: says why"}}

INFER: dict[str, Any] = {
    "summary": "Draw a batch of pictures",
    "openapi_extra": _body(_INFER_BODY),
    "responses": {200: _INFERRED, **_errors(*_DRAWING)},
}
GENERATE: dict[str, Any] = {
    "summary": "Draw one picture",
    "openapi_extra": _body(_GENERATE_BODY),
    "responses": _errors(*_DRAWING),
}
GENERATE_STREAM: dict[str, Any] = {
    "summary": "Draw one picture, step by step",
    "openapi_extra": _body(_GENERATE_BODY),
    "responses": {200: _EVENTS, **_errors(*_DRAWING)},
}
PROBE: dict[str, Any] = {"summary": "Pictures can be drawn", "responses": _UNREADY}
MODEL_READY: dict[str, Any] = {
    "summary": "The model, or a part of it, can be used",
    "responses": _errors(401, 403, 404, 500) | _UNREADY,
}
SERVER: dict[str, Any] = {"summary": "The server and its extensions", "responses": _errors(401, 403, 500, 503)}
STATISTICS: dict[str, Any] = {"summary": "What all models have done", "responses": _errors(401, 403, 500, 503)}
DESCRIBED: dict[str, Any] = {"responses": _errors(401, 403, 404, 500, 503)}
_OF_A_MODEL = links(
    "model",
    "/0/name",
    "GET /v2/models/{model}",
    "GET /v2/models/{model}/config",
    "GET /v2/models/{model}/ready",
    "GET /v2/models/{model}/stats",
    "POST /v2/models/{model}/infer",
    "POST /v2/models/{model}/generate",
    "POST /v2/models/{model}/generate_stream",
)
INDEX: dict[str, Any] = {
    "summary": "The models there are, and their states",
    "openapi_extra": _body({"type": "object", "properties": {"ready": {"type": "boolean"}}}, required=False),
    "responses": {200: _OF_A_MODEL, **_errors(400, 401, 403, 408, 413, 500, 503)},
}
LOAD: dict[str, Any] = {
    "summary": "Refused: models are chosen when the service starts",
    "status_code": 503,
    "responses": _errors(401, 403, 500, 503),
}
