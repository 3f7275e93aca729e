"""The body of `POST /v1/images/edits`, and how OpenAI writes it in JSON."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from serve.api.generation import GenerationBody
from serve.errors import InvalidRequest


class EditBody(GenerationBody):
    """Without `image` where that is a file of a form."""

    model_config = ConfigDict(title="ImageEdit")

    input_fidelity: str | None = Field(None, description="accepted, without effect: strength says it")


def flat(body: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's JSON says `images: [{"image_url": ...}]` and `mask: {"image_url": ...}`; here they are text."""
    body = dict(body)
    if "images" in body:
        images = body.pop("images")
        if not isinstance(images, list) or len(images) != 1 or "image" in body:
            raise InvalidRequest("images is not a list of one", param="images", hint="pictures begin with one picture")
        body["image"] = _url("images", images[0])
    if isinstance(body.get("mask"), dict):
        body["mask"] = _url("mask", body["mask"])
    return body


def _url(param: str, reference: Any) -> Any:
    if isinstance(reference, dict):
        if isinstance(reference.get("image_url"), str):
            return reference["image_url"]
        hint = 'send {"image_url": "data:image/png;base64,..."}; there is no file store here'
        raise InvalidRequest(f"{param} has no image_url", param=param, hint=hint)
    return reference
