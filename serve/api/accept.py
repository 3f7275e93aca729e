"""The Accept header, as far as this service offers choices."""

from __future__ import annotations

from dataclasses import dataclass

from serve.messages import ImageFormat

PROBLEM = "application/problem+json"

_JSON = ("application/json", "application/*", "*/*", PROBLEM)
_IMAGES: dict[str, ImageFormat | None] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
    "image/*": None,
}


@dataclass(frozen=True, slots=True)
class RawBytes:
    """The client prefers a picture's bytes to JSON, in this format (None: any)."""

    format: ImageFormat | None


def wants_problem(accept: str) -> bool:
    return PROBLEM in _ranked(accept)


def preferred_image(accept: str) -> RawBytes | None:
    """None where JSON is preferred, or nothing that this service has."""
    for media_type in _ranked(accept):
        if media_type in _IMAGES:
            return RawBytes(_IMAGES[media_type])
        if media_type in _JSON:
            break
    return None


def prefers_json(accept: str) -> bool:
    """Over HTML, which a client that takes anything, or says nothing, gets."""
    for media_type in _ranked(accept):
        if media_type in ("text/html", "text/*", "*/*"):
            return False
        if media_type in _JSON:
            return True
    return False


def _ranked(accept: str) -> list[str]:
    """Media types by falling weight, those of weight 0 left out."""
    ranges = [_weighted(part) for part in accept.lower().split(",") if part.strip()]
    return [media_type for media_type, weight in sorted(ranges, key=lambda item: -item[1]) if weight > 0]


def _weighted(media_range: str) -> tuple[str, float]:
    media_type, *parameters = (piece.strip() for piece in media_range.split(";"))
    weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return media_type, float(weight)
    except ValueError:
        return media_type, 0.0
