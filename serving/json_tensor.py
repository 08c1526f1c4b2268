"""JSON to tensors and back, as TensorFlow Serving's REST API does it (util/json_tensor.cc).

Two formats: by row, `{"instances": [...]}` → `{"predictions": [...]}`, and by column,
`{"inputs": ...}` → `{"outputs": ...}`. With one tensor its name may be left out.
"""

import base64
import binascii
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import wire
from serving.signatures import Signature, TensorInfo
from serving.status import Code, ServingError, invalid

_Json = Any  # what `json` parses: None, bool, int, float, str, list, dict
_DEBUG_BYTES = 256  # how much of a document an error quotes
_MAX_RANK = 254  # of a TensorFlow tensor
_MAX_EXACT_INTEGER = {"float32": 2**24 - 1, "float64": 2**53 - 1}
_KINDS = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


def parse(body: bytes) -> dict[str, _Json]:
    """The JSON object at the start of a body; NaN and infinities are allowed, as is a tail.

    Raises:
        ServingError: INVALID_ARGUMENT, with where the document stops making sense.
    """
    try:
        whole = body.decode()
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from error
    text = whole.lstrip(" \t\r\n")
    if not text:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        offset = error.pos + len(whole) - len(text)
        raise invalid(f"JSON Parse error: Invalid value. at offset: {offset}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise invalid("JSON Parse error: Number too big to be stored in double.") from error
    except RecursionError as error:
        raise invalid("JSON Parse error: The document is nested too deeply") from error
    if not isinstance(document, dict):
        raise _format_error(document, "Is not object")
    return document


def signature_name(document: Mapping[str, _Json]) -> str:
    """The signature that the document asks for, or ""; ServingError if it is no string."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _format_error(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def is_by_row(document: Mapping[str, _Json]) -> bool:
    """Whether the document is in the row format; ServingError if it is in neither, or in both."""
    if "instances" in document:
        if "inputs" in document:
            raise _format_error(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to "
                "exist ",
            )
        if not isinstance(document["instances"], list):
            raise _format_error(document, "Expecting 'instances' to be an list/array")
        if not document["instances"]:
            raise _format_error(document, "No values in 'instances' array")
        return True
    if "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    return False


def from_rows(instances: list[_Json], signature: Signature) -> dict[str, np.ndarray]:
    """The value of "instances", one element a row, as arrays `[len(instances), ...]`.

    Raises:
        ServingError: INVALID_ARGUMENT, naming the element.
    """
    by_name = isinstance(instances[0], dict) and not _is_base64(instances[0])
    infos = signature.inputs
    if not by_name and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    readers = {name: _Reader(info) for name, info in infos.items()}
    only = next(iter(readers.values()))
    for i, element in enumerate(instances):
        where = f"Failed to process element: {i}"
        if by_name != (isinstance(element, dict) and not _is_base64(element)):
            expected = "object but got list" if by_name else "value/list but got object"
            raise invalid(f"Expecting {expected} at item {i} of input list")
        if not by_name:
            _read_element(only, element, where)
            continue
        for name, value in element.items():
            if name not in readers:
                raise invalid(
                    f"{where} key: {name} of 'instances' list. Error: INVALID_ARGUMENT: "
                    f"JSON object: does not have named input: {name}"
                )
            _read_element(readers[name], value, f"{where} key: {name}")
        if element.keys() != readers.keys():
            raise invalid(
                f"{where} of 'instances' list. JSON object: {_quote(element)} keys must be equal "
                f"to: {','.join(sorted(readers))}"
            )
    return {name: reader.array((len(instances),)) for name, reader in readers.items()}


def from_columns(inputs: _Json, signature: Signature) -> dict[str, np.ndarray]:
    """The value of "inputs", a tensor or an object of them, as arrays.

    Raises:
        ServingError: INVALID_ARGUMENT, naming a missing input.
    """
    infos = signature.inputs
    if not isinstance(inputs, dict) or _is_base64(inputs):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        inputs = {next(iter(infos)): inputs}
    arrays = {}
    for name, info in infos.items():
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        reader = _Reader(info)
        reader.read(inputs[name])
        arrays[name] = reader.array(())
    return arrays


def to_json(outputs: Mapping[str, np.ndarray], *, by_row: bool) -> bytes:
    """The response to a Predict request, in the format of the request.

    Raises:
        ServingError: INVALID_ARGUMENT if rows were asked for and the outputs do not share them.
    """
    values = {name: _to_lists(name, x) for name, x in sorted(outputs.items())}
    if not by_row:
        columns = values if len(values) > 1 else next(iter(values.values()))
        return json.dumps({"outputs": columns}).encode()
    rows = None
    for name, array in sorted(outputs.items()):
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows not in (None, len(array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}"
            )
        rows = len(array)
    if len(values) == 1:
        return json.dumps({"predictions": next(iter(values.values()))}).encode()
    predictions = [
        dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)
    ]
    return json.dumps({"predictions": predictions}).encode()


class _Reader:
    """Collects the values of one tensor; every value read must have the shape of the first."""

    def __init__(self, info: TensorInfo):
        self._dtype = info.dtype
        self._type = wire.type_name(info.dtype)
        if info.dtype.kind in "iu":
            self._bounds = int(np.iinfo(info.dtype).min), int(np.iinfo(info.dtype).max)
        elif info.dtype.name in _MAX_EXACT_INTEGER:
            self._largest = float(np.finfo(info.dtype).max)
        self._shape: tuple[int, ...] | None = None
        self._values: list[bool | int | float | bytes] = []

    def read(self, value: _Json) -> None:
        shape = _dense_shape(value)
        if len(shape) > _MAX_RANK:
            raise invalid(
                f"Encountered {len(shape)} nested lists; a tensor has {_MAX_RANK} at most"
            )
        before = len(self._values)
        self._flatten(value, 0, shape)
        if self._shape is None:
            self._shape, self._size = shape, len(self._values)
        elif len(self._values) - before != self._size:
            raise invalid(
                f"Expecting tensor size: {self._size} but got: {len(self._values) - before}"
            )
        elif shape != self._shape:
            raise invalid(
                f"Expecting shape {wire.shape_text(self._shape)} but got: {wire.shape_text(shape)}"
            )

    def array(self, leading: tuple[int, ...]) -> np.ndarray:
        array = np.empty(len(self._values), self._dtype)
        array[:] = self._values
        return array.reshape(leading + (self._shape or ()))

    def _flatten(self, value: _Json, level: int, shape: tuple[int, ...]) -> None:
        if not isinstance(value, list):
            if level != len(shape):
                raise invalid(
                    f"JSON Value: {_quote(value)} found at incorrect level: {level + 1} in the "
                    f"JSON DOM. Expected at level: {len(shape)}"
                )
            self._values.append(self._convert(value))
            return
        if level >= len(shape):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise invalid(
                f"Encountered list at unexpected size: {len(value)} at level: {level} expected "
                f"size: {shape[level]}"
            )
        for item in value:
            self._flatten(item, level + 1, shape)

    def _convert(self, value: _Json) -> bool | int | float | bytes:
        kind, sent = self._dtype.kind, type(value)
        if kind == "f" and sent in (int, float) and self._dtype.name in _MAX_EXACT_INTEGER:
            return self._convert_float(value)
        if kind in "iu" and sent is int:
            # TensorFlow Serving reads small integers as int32 and lets them wrap; that is refused.
            if self._bounds[0] <= value <= self._bounds[1]:
                return value
        elif kind == "b" and sent is bool:
            return value
        elif kind == "O" and sent is str:
            return value.encode(errors="replace")
        elif kind == "O" and sent is dict:
            return _decode_base64(value)
        elif self._dtype.name == "float16":
            raise ServingError(
                Code.UNIMPLEMENTED, f"Conversion of JSON Value: {_quote(value)} to type: half"
            )
        raise invalid(
            f"JSON Value: {_quote(value)} Type: {_kind(value)} is not of expected type: "
            f"{self._type}"
        )

    def _convert_float(self, value: int | float) -> float:
        if isinstance(value, int):
            lossless = abs(value) <= _MAX_EXACT_INTEGER[self._dtype.name]
        else:
            lossless = not math.isfinite(value) or abs(value) <= self._largest
        if not lossless:
            raise invalid(
                f"Cannot convert JSON value: {_quote(value)} to {self._type} without loss of "
                "precision."
            )
        return float(value)


def _read_element(reader: _Reader, value: _Json, where: str) -> None:
    try:
        reader.read(value)
    except ServingError as error:
        raise invalid(f"{where} of 'instances' list. Error: {error}") from error


def _dense_shape(value: _Json) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _to_lists(name: str, array: np.ndarray) -> _Json:
    if array.dtype == object:
        if name.endswith("_bytes"):
            encode = np.frompyfunc(lambda x: {"b64": base64.b64encode(x).decode()}, 1, 1)
        else:
            encode = np.frompyfunc(lambda x: x.decode(errors="replace"), 1, 1)
        return np.asarray(encode(array), object).tolist()
    if array.dtype in (np.float32, np.float16):
        # Through the shortest text that reads back as the same float32: 0.2, not 0.20000000298.
        return array.astype("U").astype(np.float64).tolist()
    return array.tolist()


def _is_base64(value: dict[str, _Json]) -> bool:
    return value.keys() == {"b64"} and isinstance(value["b64"], str)


def _decode_base64(value: dict[str, _Json]) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_quote(value)} not formatted correctly for base64 data")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _kind(value: _Json) -> str:
    return str(value) if isinstance(value, bool) else _KINDS[type(value)]


def _quote(value: _Json) -> str:
    pieces = json.JSONEncoder(indent=4).iterencode(value)  # lazy: the document may be huge
    return "".join(itertools.islice(pieces, _DEBUG_BYTES))[:_DEBUG_BYTES]


def _format_error(value: _Json, message: str) -> ServingError:
    return invalid(f"JSON Value: {_quote(value)} {message}")
