"""What /openapi.json says of the routes around input pictures."""

from __future__ import annotations

from typing import Any

from serve.api.docs import errors, generated, hf_parameters, images
from serve.api.edit_body import EditBody

_FILE = {"type": "string", "format": "binary"}


def _edit(title: str, **files: Any) -> dict[str, Any]:
    schema = EditBody.model_json_schema()
    return {
        "schema": schema | {"title": title, "properties": schema["properties"] | files, "required": ["image", "prompt"]}
    }


EDIT: dict[str, Any] = {
    "summary": "Draw pictures that begin with another",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": _edit("ImageEditForm", image=_FILE, mask=_FILE, control_image=_FILE),
                "application/json": _edit("ImageEdit"),
            },
        }
    },
    "responses": {200: generated(), **errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 507)},
}
_SIDE = {"type": "integer", "multipleOf": 16, "minimum": 64}
_TARGET = {"type": "object", "required": ["width", "height"], "properties": {"width": _SIDE, "height": _SIDE}}
HUGGING_FACE: dict[str, Any] = {
    "summary": "Draw one picture from a prompt or from another picture, as Hugging Face's clients ask for it",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "title": "HuggingFaceTask",
                        "type": "object",
                        "required": ["inputs"],
                        "properties": {
                            "inputs": {
                                "type": "string",
                                "description": "the prompt; a picture where that is a parameter",
                            },
                            "parameters": hf_parameters(prompt={"type": "string"}, target_size=_TARGET),
                        },
                    }
                }
            },
        }
    },
    "responses": {200: images("the picture"), **errors(400, 401, 403, 404, 408, 413, 429, 500, 503, 507)},
}
INPUT_PICTURE: dict[str, Any] = {
    "summary": "A picture that one of your jobs was drawn from",
    "responses": {
        200: {"description": "the picture, in the size that was drawn", "content": {"image/png": {"schema": _FILE}}},
        304: {"description": "unchanged, by `If-None-Match`"},
        **errors(401, 403, 404, 500, 503),
    },
}
