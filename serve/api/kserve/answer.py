"""Finished rows as output tensors, in JSON or behind it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from PIL import Image

from serve.api.deps import Door
from serve.api.kserve.models import GENERATED_IMAGE, IMAGE_BYTES, SEED_USED, VERSION
from serve.api.kserve.request import HEADER_LENGTH, Wanted
from serve.assets.store import Asset
from serve.errors import InvalidRequest
from serve.messages import Submission, Succeeded

MAX_JSON_PIXELS = 2048 * 2048
_NUMBERS = [str(value) for value in range(256)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A row's picture as it was stored."""

    asset: Asset
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """Its entry of the JSON without its data, and the data: JSON text, or bytes."""

    entry: dict[str, Any]
    text: str | None = None
    data: bytes | None = None

    def json(self) -> str:
        entry = json.dumps(self.entry)
        return entry if self.text is None else f'{entry[:-1]}, "data": [{self.text}]}}'


async def drawn(door: Door, done: Sequence[Succeeded]) -> list[Drawn]:
    pictures = [row.images[0] for row in done]
    return [Drawn(asset=await door.assets.read(picture.asset_id), seed=picture.seed) for picture in pictures]


def check_pixels(rows: Sequence[Submission], outputs: Sequence[Wanted]) -> None:
    """Before any work. Raises InvalidRequest for more numbers than a JSON document should hold."""
    pixels = sum(row.request.width * row.request.height for row in rows)
    if pixels > MAX_JSON_PIXELS and any(wanted.spec == GENERATED_IMAGE and not wanted.binary for wanted in outputs):
        raise InvalidRequest(
            f"generated_image has {pixels} pixels, as JSON at most {MAX_JSON_PIXELS}",
            param="generated_image",
            hint="ask for it with binary_data: true, or for image_bytes",
        )


async def infer_response(
    model: str, request_id: str | None, rows: Sequence[Drawn], outputs: Sequence[Wanted], headers: dict[str, str]
) -> Response:
    """Pixels and numbers of large pictures take a while: not on the event loop."""
    return await asyncio.to_thread(_infer_response, model, request_id, rows, outputs, headers)


def generate_json(model: str, request_id: str | None, row: Drawn) -> dict[str, Any]:
    picture = {"image_bytes": base64.b64encode(row.asset.data).decode(), "seed_used": row.seed}
    return head(model, request_id) | picture


def head(model: str, request_id: str | None) -> dict[str, Any]:
    known = {"model_name": model, "model_version": VERSION}
    return known if request_id is None else known | {"id": request_id}


def _infer_response(
    model: str, request_id: str | None, rows: Sequence[Drawn], wanted: Sequence[Wanted], headers: dict[str, str]
) -> Response:
    outputs = [_ENCODERS[output.spec.name](rows, output.binary) for output in wanted]
    before = json.dumps(head(model, request_id), ensure_ascii=False)
    document = f'{before[:-1]}, "outputs": [{", ".join(output.json() for output in outputs)}]}}'.encode()
    tensors = [output.data for output in outputs if output.data is not None]
    if not tensors:
        return Response(document, media_type="application/json", headers=headers)
    headers = headers | {HEADER_LENGTH: str(len(document))}
    return Response(b"".join([document, *tensors]), media_type="application/octet-stream", headers=headers)


def _pixels(rows: Sequence[Drawn], binary: bool) -> _Output:
    images = [Image.open(io.BytesIO(row.asset.data)).convert("RGB") for row in rows]
    shape = [len(images), images[0].height, images[0].width, 3]
    data = b"".join(image.tobytes() for image in images)
    return _output(GENERATED_IMAGE.name, "UINT8", shape, data if binary else ",".join(map(_NUMBERS.__getitem__, data)))


def _files(rows: Sequence[Drawn], binary: bool) -> _Output:
    files = [row.asset.data for row in rows]
    if binary:
        data = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        return _output(IMAGE_BYTES.name, "BYTES", [len(files), 1], data, rows[0].asset.media_type)
    text = ",".join(f'"{base64.b64encode(file).decode()}"' for file in files)
    return _output(IMAGE_BYTES.name, "BYTES", [len(files), 1], text, "base64")


def _seeds(rows: Sequence[Drawn], binary: bool) -> _Output:
    data = b"".join(row.seed.to_bytes(8, "little", signed=True) for row in rows)
    text = ",".join(str(row.seed) for row in rows)
    return _output(SEED_USED.name, "INT64", [len(rows), 1], data if binary else text)


def _output(name: str, datatype: str, shape: list[int], data: bytes | str, content_type: str = "") -> _Output:
    parameters: dict[str, Any] = {"content_type": content_type} if content_type else {}
    if isinstance(data, bytes):
        parameters["binary_data_size"] = len(data)
    entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if parameters:
        entry["parameters"] = parameters
    return _Output(entry=entry, data=data) if isinstance(data, bytes) else _Output(entry=entry, text=data)


_ENCODERS: dict[str, Callable[[Sequence[Drawn], bool], _Output]] = {
    GENERATED_IMAGE.name: _pixels,
    IMAGE_BYTES.name: _files,
    SEED_USED.name: _seeds,
}
