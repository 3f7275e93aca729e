"""The values of an input tensor, out of JSON or out of bytes: checked, flat, row major."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NoReturn

from serve.api.kserve.models import TensorSpec
from serve.errors import InvalidRequest

_INTEGER_BITS = {"INT32": 32, "INT64": 64}
_STRUCT = {"INT32": "i", "INT64": "q", "FP32": "f"}
_FP32_MAX = 3.4028235e38


def from_json(spec: TensorSpec, data: Any, count: int) -> list[Any]:
    """`data` is a list, flat or nested; the result has text, integers or floats. Raises InvalidRequest."""
    if not isinstance(data, list):
        wrong(spec.name, "data is not a list")
    values = list(_flat(data, count + 1))
    if len(values) != count:
        has = len(values) if len(values) < count else f"more than {count}"
        wrong(spec.name, f"data has {has} elements, its shape {count}")
    return [_value(spec, value) for value in values]


def from_bytes(spec: TensorSpec, data: bytes, count: int) -> list[Any]:
    """Little endian; each element of BYTES after its length in four bytes. Raises InvalidRequest."""
    if spec.datatype == "BYTES":
        return _texts(spec, data, count)
    layout = struct.Struct(f"<{count}{_STRUCT[spec.datatype]}")
    if len(data) != layout.size:
        wrong(spec.name, f"has {len(data)} bytes, {count} elements of {spec.datatype} have {layout.size}")
    return [_value(spec, value) for value in layout.unpack(data)]


def wrong(name: str, what: str, hint: str | None = None) -> NoReturn:
    raise InvalidRequest(f"input {name!r} {what}", param=name, hint=hint)


def _flat(data: list[Any], most: int) -> Iterable[Any]:
    """The first `most` elements."""
    left = [iter(data)]
    while left and most:
        for item in left[-1]:
            if isinstance(item, list):
                left.append(iter(item))
                break
            yield item
            most -= 1
            if not most:
                return
        else:
            left.pop()


def _value(spec: TensorSpec, value: Any) -> Any:
    if spec.datatype == "BYTES":
        return value if isinstance(value, str) else _not(spec, value, "a string")
    if isinstance(value, bool):
        _not(spec, value, "a number")
    if spec.datatype == "FP32":
        return _fp32(spec, value)
    most = 2 ** (_INTEGER_BITS[spec.datatype] - 1) - 1
    if not isinstance(value, int) or not -most - 1 <= value <= most:
        _not(spec, value, f"an integer of {spec.datatype}")
    return value


def _fp32(spec: TensorSpec, value: Any) -> float:
    """As the shortest decimal that stands for the same FP32: 4.2 is 4.2 whichever way it came."""
    if not isinstance(value, int | float) or not -_FP32_MAX <= value <= _FP32_MAX:
        _not(spec, value, "a finite FP32")
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    return next(short for digits in range(1, 10) if _single(short := float(f"{single:.{digits}g}")) == single)


def _single(value: float) -> float:
    """Digits that are too few can round over FP32's largest."""
    value = min(max(value, -_FP32_MAX), _FP32_MAX)
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _not(spec: TensorSpec, value: Any, what: str) -> NoReturn:
    wrong(spec.name, f"has an element that is not {what}: {str(value)[:40]!r}")


def _texts(spec: TensorSpec, data: bytes, count: int) -> list[str]:
    texts: list[str] = []
    at = 0
    for _ in range(count):
        if at + 4 > len(data):
            wrong(spec.name, f"ends before the length of element {len(texts)}")
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            wrong(spec.name, f"says that element {len(texts)} has {end - at - 4} bytes, {len(data) - at - 4} are left")
        try:
            texts.append(data[at + 4 : end].decode())
        except UnicodeDecodeError as error:
            wrong(spec.name, f"is not UTF-8 at byte {error.start} of element {len(texts)}")
        at = end
    if at != len(data):
        wrong(spec.name, f"has {len(data) - at} bytes left over after {count} elements")
    return texts
