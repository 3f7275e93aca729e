"""Pixels to files."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from serve.engine.pixels import Pixels
from serve.messages import ImageFormat, ImageRequest

DEFAULT_QUALITY = 90
SOFTWARE = "zimage-serve"
MAX_EXIF_BYTES = 65_000  # what one segment of a JPEG holds


def encode(pixels: Pixels, format: ImageFormat, compression: int | None = None, parameters: str | None = None) -> bytes:
    """RGB [H, W, 3] -> a file. `compression` is the quality 0..100 of jpeg and webp; png is always lossless.

    `parameters` go inside, where image tools look for them: a text chunk of png, else EXIF's UserComment.
    """
    buffer = BytesIO()
    image = Image.fromarray(pixels)
    quality = DEFAULT_QUALITY if compression is None else compression
    if format == "png":
        text = _png_text(parameters)
        image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=text)  # smaller than level 1, too
    elif format == "jpeg":
        image.save(buffer, "JPEG", quality=quality, exif=_exif(parameters))
    else:
        image.save(buffer, "WEBP", quality=quality, method=0, exif=_exif(parameters))
    return buffer.getvalue()


def _png_text(parameters: str | None) -> PngInfo | None:
    if parameters is None:
        return None
    info = PngInfo()
    info.add_text("parameters", parameters)
    info.add_text("Software", SOFTWARE)
    return info


def _exif(parameters: str | None) -> bytes:
    """Nothing where a prompt is too long for it: it is in the metadata beside the picture."""
    if parameters is None:
        return b""
    exif = Image.Exif()
    exif[Base.Software] = SOFTWARE
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
    data = exif.tobytes()
    return data if len(data) <= MAX_EXIF_BYTES else b""


def encode_preview(pixels: Pixels, request: ImageRequest) -> bytes:
    """A preview [h, w, 3], enlarged to the size of the picture that it announces."""
    full = Image.fromarray(pixels).resize((request.width, request.height), Image.Resampling.BICUBIC)
    return encode(np.asarray(full), request.output_format)
