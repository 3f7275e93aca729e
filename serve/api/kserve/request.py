"""An infer request, out of its JSON and the binary tensors behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from serve.api.body import parse_object
from serve.api.kserve import tensors
from serve.api.kserve.models import INPUTS, OUTPUTS, TensorSpec
from serve.api.kserve.options import Options, check_names, read_options
from serve.errors import InvalidRequest, NotOffered
from serve.settings import LimitSettings

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An output that was asked for, and how."""

    spec: TensorSpec
    binary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """`rows` have a value for each input that was sent, by its name."""

    id: str | None
    rows: tuple[Mapping[str, Any], ...]
    outputs: tuple[Wanted, ...]
    options: Options = field(default_factory=Options)


def read_infer(body: bytes, header_length: str | None, limits: LimitSettings) -> InferRequest:
    """Raises InvalidRequest and its kinds, or NotOffered."""
    header, binary = _split(body, header_length)
    content = parse_object(header, limits)
    check_names(content)
    parameters = content.get("parameters", {})
    return InferRequest(
        id=read_id(content),
        rows=_rows(content.get("inputs"), binary, limits),
        outputs=_outputs(content.get("outputs"), parameters),
        options=read_options(parameters),
    )


def read_id(content: Mapping[str, Any]) -> str | None:
    if "id" in content and not isinstance(content["id"], str):
        _bad("id is not a string", "id")
    return content.get("id")


def check_batch(rows: int, limits: LimitSettings) -> None:
    if not 1 <= rows <= limits.max_n:
        _bad(f"the batch has {rows} rows, it may have 1 to {limits.max_n}", "shape")


def _split(body: bytes, header_length: str | None) -> tuple[bytes, _Binary]:
    if header_length is None:
        return body, _Binary(None)
    if not (header_length.isascii() and header_length.isdecimal()) or len(header_length) > 18:
        _bad(f"{HEADER_LENGTH} is {header_length[:32]!r}, not a number of bytes", HEADER_LENGTH)
    length = int(header_length)
    if not 0 < length <= len(body):
        what = "raw requests are for models with one input" if length == 0 else f"the body has {len(body)} bytes"
        _bad(f"{HEADER_LENGTH} is {length}: {what}", HEADER_LENGTH)
    return body[:length], _Binary(memoryview(body)[length:])


class _Binary:
    """The bytes behind the JSON, taken by one input after the other; None where no header says that there are any."""

    def __init__(self, data: memoryview | None) -> None:
        self._data = data

    def take(self, name: str, size: Any) -> bytes:
        if self._data is None:
            tensors.wrong(name, f"has binary_data_size, but the request no {HEADER_LENGTH}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            tensors.wrong(name, f"has the binary_data_size {str(size)[:32]!r}, not a number of bytes")
        if size > len(self._data):
            tensors.wrong(name, f"has binary_data_size {size}, but {len(self._data)} bytes are left in the body")
        taken, self._data = bytes(self._data[:size]), self._data[size:]
        return taken

    def check_used_up(self) -> None:
        if self._data:
            _bad(f"{len(self._data)} bytes are left over behind the binary inputs", "inputs")


def _rows(inputs: Any, binary: _Binary, limits: LimitSettings) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(inputs, list) or not inputs:
        _bad("inputs is required: a list of tensors", "inputs")
    columns: dict[str, list[Any]] = {}
    for entry in inputs:
        spec = _named(entry, "inputs", INPUTS, columns)
        columns[spec.name] = _column(spec, entry, binary, limits)
    binary.check_used_up()
    if "prompt" not in columns:
        _bad("input 'prompt' is required", "prompt")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        _bad(f"the first dimensions of the inputs differ: {lengths}", "shape")
    return tuple(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _column(spec: TensorSpec, entry: Mapping[str, Any], binary: _Binary, limits: LimitSettings) -> list[Any]:
    if entry.get("datatype") != spec.datatype:
        tensors.wrong(spec.name, f"has the datatype {str(entry.get('datatype'))[:32]!r}, not {spec.datatype}")
    rows = _batch(spec, entry.get("shape"))
    check_batch(rows, limits)
    parameters = _parameters(entry, f"input {spec.name!r}")
    if ("data" in entry) == ("binary_data_size" in parameters):
        tensors.wrong(spec.name, "needs either data or the parameter binary_data_size")
    if "data" in entry:
        return tensors.from_json(spec, entry["data"], rows)
    return tensors.from_bytes(spec, binary.take(spec.name, parameters["binary_data_size"]), rows)


def _batch(spec: TensorSpec, shape: Any) -> int:
    dims = shape if isinstance(shape, list) else []
    if len(dims) != 2 or any(type(dim) is not int or dim < 0 for dim in dims) or dims[1] != 1:
        tensors.wrong(spec.name, f"has the shape {str(shape)[:64]}, not [rows, 1]")
    return int(dims[0])


def _outputs(outputs: Any, parameters: Any) -> tuple[Wanted, ...]:
    binary = parameters.get("binary_data_output", False) if isinstance(parameters, dict) else False
    if not isinstance(binary, bool):
        _bad("the parameter binary_data_output is not a boolean", "binary_data_output")
    if outputs is None or outputs == []:
        return tuple(Wanted(spec=spec, binary=binary) for spec in OUTPUTS.values())
    if not isinstance(outputs, list):
        _bad("outputs is not a list", "outputs")
    wanted: dict[str, Wanted] = {}
    for entry in outputs:
        spec = _named(entry, "outputs", OUTPUTS, wanted)
        own = _parameters(entry, f"output {spec.name!r}")
        if own.get("classification"):
            raise NotOffered("classification is not offered", param=spec.name, hint="leave it out")
        asked = own.get("binary_data", binary)
        if not isinstance(asked, bool):
            _bad(f"the parameter binary_data of output {spec.name!r} is not a boolean", spec.name)
        wanted[spec.name] = Wanted(spec=spec, binary=asked)
    return tuple(wanted.values())


def _named(entry: Any, where: str, specs: Mapping[str, TensorSpec], seen: Mapping[str, Any]) -> TensorSpec:
    """The tensor that an entry of a list is for, each once."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in specs:
        _bad(f"{where} has an entry {str(name)[:64]!r}; there are: {', '.join(specs)}", where)
    if name in seen:
        _bad(f"{where} has {name!r} twice", where)
    return specs[name]


def _parameters(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        _bad(f"parameters of {where} is not an object", "parameters")
    if any(name.startswith("shared_memory") for name in parameters):
        raise NotOffered("shared memory is not offered", param="parameters", hint="send the data in the request")
    return parameters


def _bad(message: str, param: str) -> NoReturn:
    raise InvalidRequest(message, param=param)
