"""What /openapi.json says of the routes around input pictures."""

from __future__ import annotations

from typing import Any

from serve.api.docs import errors, generated

_TEXT, _FILE = {"type": "string"}, {"type": "string", "format": "binary"}

EDIT: dict[str, Any] = {
    "summary": "Draw pictures that begin with another",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "title": "ImageEditForm",
                        "type": "object",
                        "required": ["image", "prompt"],
                        "properties": {"image": _FILE, "mask": _FILE, "prompt": _TEXT, "strength": {"type": "number"}},
                    }
                },
                "application/json": {
                    "schema": {
                        "title": "ImageEdit",
                        "type": "object",
                        "required": ["image", "prompt"],
                        "properties": {"image": _TEXT, "mask": _TEXT, "prompt": _TEXT, "strength": {"type": "number"}},
                    }
                },
            },
        }
    },
    "responses": {200: generated(), **errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 507)},
}
INPUT_PICTURE: dict[str, Any] = {
    "summary": "A picture that one of your jobs began with",
    "responses": {
        200: {"description": "the picture, in the size that was drawn", "content": {"image/png": {"schema": _FILE}}},
        304: {"description": "unchanged, by `If-None-Match`"},
        **errors(401, 403, 404, 500, 503),
    },
}
