"""Pixels to files."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from serve.engine.decode import Pixels
from serve.messages import ImageFormat, ImageRequest

DEFAULT_QUALITY = 90


def encode(pixels: Pixels, format: ImageFormat, compression: int | None = None) -> bytes:
    """RGB [H, W, 3] -> a file. `compression` is the quality 0..100 of jpeg and webp; png is always lossless."""
    buffer = BytesIO()
    image = Image.fromarray(pixels)
    quality = DEFAULT_QUALITY if compression is None else compression
    if format == "png":
        image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)  # of a picture, smaller too than level 1
    elif format == "jpeg":
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "WEBP", quality=quality, method=0)
    return buffer.getvalue()


def encode_preview(pixels: Pixels, request: ImageRequest) -> bytes:
    """A preview [h, w, 3], enlarged to the size of the picture that it announces."""
    full = Image.fromarray(pixels).resize((request.width, request.height), Image.Resampling.BICUBIC)
    return encode(np.asarray(full), request.output_format)
