"""Input pictures: files of strangers, checked before they are decoded, and made what the model begins with.

An input is a PNG without anything but its pixels, of the size that is to be drawn. Its name is their hash, so the same
picture is one input, whatever file it came in.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serve.errors import AssetCorrupted, InvalidRequest
from serve.settings import LimitSettings

FORMATS = ("PNG", "JPEG", "WEBP")
NAME = re.compile("[0-9a-f]{64}")
LATENT_PX = 8  # a mask is looked at in every so many-th pixel

Param = Literal["image", "mask", "control_image"]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_CONVERT = "send a PNG, JPEG or WebP file"


@dataclass(frozen=True, slots=True)
class Input:
    """What is stored: `data` is a PNG, `name` the hash of its pixels, 64 hexadecimal digits."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Source:
    """A decoded picture, RGB and upright, and what of it is to be drawn anew: white in `mask`, of the same size."""

    picture: Image.Image
    mask: Image.Image | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.picture.size

    def fitted(self, width: int, height: int) -> tuple[Input, Input | None]:
        """Resized as diffusers' VaeImageProcessor does, which keeps no ratio. Raises InvalidRequest."""
        picture = self.picture.resize((width, height), Image.Resampling.LANCZOS)
        if self.mask is None:
            return _input(picture), None
        mask = self.mask.resize((width, height), Image.Resampling.LANCZOS).point(_black_or_white)
        if not np.asarray(mask)[::LATENT_PX, ::LATENT_PX].any():
            raise InvalidRequest(
                f"the mask leaves nothing to draw at {width}x{height}",
                param="mask",
                hint="make what is to be drawn transparent, or white in a mask without transparency; spots under "
                f"{LATENT_PX} pixels do not count",
            )
        return _input(picture), _input(mask)


@dataclass(frozen=True, slots=True)
class Brought:
    """The decoded pictures of a request: what it begins with, and what a ControlNet is to follow, RGB and upright."""

    source: Source | None = None
    control: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the picture to begin with, else of the control picture."""
        if self.source is not None:
            return self.source.size
        return None if self.control is None else self.control.size

    def fitted(self, width: int, height: int) -> dict[str, Input]:
        """In the size that is drawn, by the request's field of their names. Raises InvalidRequest."""
        found: dict[str, Input] = {}
        if self.source is not None:
            image, mask = self.source.fitted(width, height)
            found = {"image": image} if mask is None else {"image": image, "mask": mask}
        if self.control is not None:
            found["control_image"] = _input(self.control.resize((width, height), Image.Resampling.LANCZOS))
        return found


NOTHING = Brought()


def control(image: bytes, limits: LimitSettings) -> Image.Image:
    """Decoded, which takes a while; what is transparent lies on white. Raises InvalidRequest."""
    return _opaque(_decoded(image, "control_image", limits))


def source(image: bytes, mask: bytes | None, limits: LimitSettings, *, alpha_is_mask: bool = False) -> Source:
    """Decoded, which takes a while. With `alpha_is_mask` and no mask, the picture's own transparent parts are drawn.

    Raises InvalidRequest, whose `param` says which of the two is at fault.
    """
    picture = _decoded(image, "image", limits)
    if mask is not None:
        return Source(_opaque(picture), _mask(_decoded(mask, "mask", limits), picture.size))
    see_through = alpha_is_mask and _has_holes(picture)
    return Source(_opaque(picture), _holes(picture) if see_through else None)


def unpacked(name: str, data: bytes) -> Pixels:
    """[H, W, 3], or [H, W] of a mask. Raises AssetCorrupted."""
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            image.load()
            if _name(image) == name:
                return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        pass  # said below
    raise AssetCorrupted(f"the stored input picture {name[:16]} is damaged", hint="send the picture again")


def _decoded(data: bytes, param: Param, limits: LimitSettings) -> Image.Image:
    """Upright, in RGB, or RGBA where it has transparent parts."""
    if len(data) > limits.image_bytes:
        raise InvalidRequest(
            f"{param} has {len(data)} bytes, the limit is {limits.image_bytes}",
            param=param,
            hint="send it smaller, or as JPEG: it is resized to the size that is drawn anyway",
        )
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check(image, param, limits)
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _eight_bits(upright)
    except InvalidRequest:
        raise
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{param} is not a PNG, JPEG or WebP file", param=param, hint=_CONVERT) from error
    except _BOMBS as error:
        raise _too_many_pixels(param, "far too many", limits) from error
    except Exception as error:  # decoders raise whatever a damaged or a malicious file leads them to
        raise InvalidRequest(
            f"{param} is cut short or damaged", param=param, hint="send the whole file again"
        ) from error


def _check(image: Image.Image, param: Param, limits: LimitSettings) -> None:
    """By the file's header, before anything is decoded."""
    width, height = image.size
    if width * height > limits.image_pixels:
        raise _too_many_pixels(param, f"{width}x{height} = {width * height}", limits)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's photo with its depth or gain map behind it
        raise InvalidRequest(f"{param} is animated: it has {frames} frames", param=param, hint="send a single picture")


def _too_many_pixels(param: Param, pixels: str, limits: LimitSettings) -> InvalidRequest:
    return InvalidRequest(
        f"{param} has {pixels} pixels, the limit is {limits.image_pixels}",
        param=param,
        hint="send it smaller: it is resized to the size that is drawn anyway",
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # sixteen bits of grey, which Pillow would cut off instead of scaling
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _opaque(image: Image.Image) -> Image.Image:
    """On white."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As OpenAI has it where parts are transparent, else as diffusers does: white is drawn."""
    if mask.size != size:
        raise InvalidRequest(
            f"mask is {mask.width}x{mask.height}, image is {size[0]}x{size[1]}",
            param="mask",
            hint="send a mask of the picture's width and height",
        )
    return _holes(mask) if _has_holes(mask) else mask.convert("RGB").convert("L")


def _has_holes(image: Image.Image) -> bool:
    return image.mode == "RGBA" and image.getchannel("A").getextrema()[0] == 0


def _holes(image: Image.Image) -> Image.Image:
    """White where it is transparent."""
    return image.getchannel("A").point(_white_if_zero)


_black_or_white = [255 if value >= 128 else 0 for value in range(256)]
_white_if_zero = [255] + 255 * [0]


def _input(image: Image.Image) -> Input:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return Input(_name(image), buffer.getvalue())


def _name(image: Image.Image) -> str:
    said = f"{image.mode} {image.width}x{image.height}\0".encode()
    return hashlib.sha256(said + image.tobytes()).hexdigest()
