"""Files of strangers become input pictures: as diffusers would read them, upright, and never more than the limits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from serve.errors import AssetCorrupted, InvalidRequest
from serve.inputs import Source, source, unpacked
from serve.settings import LimitSettings
from serve.sizes import MAX_ASPECT, WrongSize, own_size, parse_size

LIMITS = LimitSettings()
sides = st.integers(1, 3000)


def painted(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(random.integers(0, 256, (height, width, bands), np.uint8).squeeze(), mode)


def file(image: Image.Image, format: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


def read(image: Image.Image, format: str = "PNG", **how: Any) -> Source:
    return source(file(image, format, **how), None, LIMITS)


def pixels(source: Source, width: int, height: int) -> np.ndarray:
    picture, _ = source.fitted(width, height)
    return unpacked(picture.name, picture.data)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 300), (333, 77)])
def test_a_picture_is_resized_as_diffusers_does(width: int, height: int) -> None:
    image = painted(width, height)
    expected = VaeImageProcessor(vae_scale_factor=16, do_normalize=False).preprocess(image, 96, 128)
    ours = pixels(read(image), 128, 96)
    assert np.array_equal(ours, np.rint(expected[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def test_a_mask_is_resized_as_diffusers_does() -> None:
    image, mask = painted(200, 150), painted(200, 150, "L")
    processor = VaeImageProcessor(16, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected = processor.preprocess(mask, 96, 128)[0, 0].numpy()
    _, stored = source(file(image), file(mask), LIMITS).fitted(128, 96)
    assert stored is not None
    assert np.array_equal(unpacked(stored.name, stored.data), (expected * 255).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation: int) -> None:
    image, exif = painted(40, 30), Image.Exif()
    exif[0x0112] = orientation
    photo = file(image, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photo)))
    assert source(photo, None, LIMITS).picture == upright
    assert upright.size == ((40, 30) if orientation < 5 else (30, 40))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_picture_is_read(mode: str) -> None:
    image = Image.new(mode, (32, 32), 40_000) if mode == "I;16" else painted(32, 32).convert(mode)
    opened = read(image, "JPEG" if mode == "CMYK" else "PNG").picture
    assert (opened.mode, opened.size) == ("RGB", (32, 32))
    if mode == "I;16":
        assert opened.getpixel((0, 0)) == (156, 156, 156)


def test_transparent_parts_lie_on_white_and_are_a_mask_where_asked() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.paste((0, 0, 255, 128), (32, 0, 48, 64))
    opened = source(file(image), None, LIMITS)
    assert [opened.picture.getpixel((x, 9)) for x in (9, 40, 60)] == [(255, 255, 255), (127, 127, 255), (255, 0, 0)]
    assert opened.mask is None
    asked = source(file(image), None, LIMITS, alpha_is_mask=True).mask
    assert asked is not None
    assert [asked.getpixel((x, 9)) for x in (9, 40, 60)] == [255, 0, 0]
    assert source(file(painted(64, 64, "RGBA").convert("RGB")), None, LIMITS, alpha_is_mask=True).mask is None


def test_a_phones_picture_with_a_second_one_behind_it_is_still() -> None:
    image = painted(64, 64)
    photo = file(image, "MPO", save_all=True, append_images=[image.resize((32, 32))])
    assert Image.open(io.BytesIO(photo)).n_frames == 2
    assert source(photo, None, LIMITS).size == (64, 64)


def test_the_same_pixels_have_one_name_and_others_another() -> None:
    image = painted(64, 64)
    files = read(image), read(image, compress_level=9), read(image, "WEBP", lossless=True)
    names = {opened.fitted(64, 64)[0].name for opened in files}
    assert len(names) == 1
    assert read(image).fitted(80, 64)[0].name not in names
    assert read(painted(65, 64)).fitted(64, 64)[0].name not in names


def test_a_damaged_input_is_not_drawn_from() -> None:
    picture, _ = read(painted(64, 64)).fitted(64, 64)
    other, _ = read(painted(65, 64)).fitted(64, 64)
    for data in (picture.data[: len(picture.data) // 2], b"", other.data):
        with pytest.raises(AssetCorrupted, match="damaged"):
            unpacked(picture.name, data)


def test_limits_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(painted(100, 100))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    for limits, reason in (
        (LimitSettings(image_bytes=1024), f"image has {len(data)} bytes, the limit is 1024"),
        (LimitSettings(image_pixels=4096), "image has 100x100 = 10000 pixels, the limit is 4096"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            source(data, None, limits)
        assert refusal.value.message == reason
        assert refusal.value.hint


@settings(max_examples=200, deadline=None)
@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_file_with_flipped_and_missing_bytes_is_read_or_refused(data: st.DataObject, format: str) -> None:
    broken = bytearray(file(painted(40, 40), format))
    for _ in range(data.draw(st.integers(0, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.integers(1, len(broken))) :]
    try:
        source(bytes(broken), None, LIMITS)
    except InvalidRequest as error:
        assert error.param == "image"  # noqa: PT017


@given(width=sides, height=sides, cap=st.sampled_from([256, 1024, 2048]))
def test_a_pictures_own_size_can_be_drawn_and_is_close_to_it(width: int, height: int, cap: int) -> None:
    try:
        own = own_size(width, height, cap)
    except WrongSize:
        assert max(width, height) > MAX_ASPECT * min(width, height)
        return
    assert parse_size(f"{own[0]}x{own[1]}", cap) == own
    if max(width, height) <= cap and min(width, height) >= 64 and max(width, height) < 2.5 * min(width, height):
        assert own == (width // 16 * 16, height // 16 * 16)
