"""`zimage preset-pictures`: draws the picture of every preset and style, by a service that runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from serve.errors import ConfigError

SIDE_PX = 96
QUALITY = 70
SUBJECTS = (
    "a red fox",
    "a rocket",
    "a pencil",
    "a palm tree at sunset",
    "a cup of coffee",
    "a rose",
    "an owl",
    "a robot",
)
STYLED = "a house"
TIMEOUT_S = 600


def draw_pictures(url: str, folder: Path, prompt: str | None, key: str | None) -> list[Path]:
    """One file for each, called by its name. Raises ConfigError where the service does not answer or will not draw."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    written = []
    with httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        catalog = _answer(client, "GET", "/v1/presets").json()
        for number, preset in enumerate(catalog["data"]):
            asked = {"preset": preset["name"], "prompt": prompt or SUBJECTS[number % len(SUBJECTS)]}
            written.append(_draw(client, folder / f"{preset['name']}.webp", asked))
        for style in catalog["styles"]:
            asked = {"style_preset": style["name"], "prompt": prompt or STYLED}
            written.append(_draw(client, folder / f"style-{style['name']}.webp", asked))
    return written


def small(data: bytes) -> bytes:
    """The middle square of a picture, as WebP of 96 pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=QUALITY, method=6)
    return packed.getvalue()


def _draw(client: httpx2.Client, path: Path, asked: Mapping[str, Any]) -> Path:
    body = {**asked, "seed": 1, "priority": "batch"}
    answer = _answer(client, "POST", "/v1/images/generations", json=body, headers={"Accept": "image/png"})
    path.write_bytes(small(answer.content))
    return path


def _answer(client: httpx2.Client, method: str, path: str, **how: Any) -> httpx2.Response:
    try:
        answer = client.request(method, path, **how)
    except httpx2.HTTPError as error:
        raise ConfigError(
            f"{client.base_url} does not answer: {error}", hint="start the service, or name its URL"
        ) from None
    if answer.is_error:
        raise ConfigError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
    return answer
