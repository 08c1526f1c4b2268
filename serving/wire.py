"""TensorFlow Serving's messages and tensors on the wire, without TensorFlow.

The messages are built from the table below in a descriptor pool of their own, so that they live in
one process with the official `tensorflow_serving` stubs. Names and numbers: tensorflow/core/{
framework,protobuf}/*.proto and tensorflow_serving/apis/*.proto; fields that nothing here reads are
left out, and the parser keeps them as unknown fields.
"""

import re
from typing import Any

import numpy as np
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

Message = Any  # the classes are made at run time, so that no checker can know their fields

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
HEALTH_SERVICE = "grpc.health.v1.Health"

# A tensor may be given as fewer values than it has elements; the last one repeats. Beyond this many
# elements that is no shorthand but a way to exhaust memory with a few bytes.
MAX_REPEATED_ELEMENTS = 1 << 24

_ENUMS = {
    "tensorflow.DataType": (
        "DT_INVALID=0 DT_FLOAT=1 DT_DOUBLE=2 DT_INT32=3 DT_UINT8=4 DT_INT16=5 DT_INT8=6 "
        "DT_STRING=7 DT_COMPLEX64=8 DT_INT64=9 DT_BOOL=10 DT_BFLOAT16=14 DT_UINT16=17 "
        "DT_COMPLEX128=18 DT_HALF=19 DT_UINT32=22 DT_UINT64=23"
    ),
    "tensorflow.error.Code": (
        "OK=0 CANCELLED=1 UNKNOWN=2 INVALID_ARGUMENT=3 DEADLINE_EXCEEDED=4 NOT_FOUND=5 "
        "ALREADY_EXISTS=6 PERMISSION_DENIED=7 RESOURCE_EXHAUSTED=8 FAILED_PRECONDITION=9 "
        "ABORTED=10 OUT_OF_RANGE=11 UNIMPLEMENTED=12 INTERNAL=13 UNAVAILABLE=14 DATA_LOSS=15 "
        "UNAUTHENTICATED=16"
    ),
    "tensorflow.serving.ModelVersionStatus.State": (
        "UNKNOWN=0 START=10 LOADING=20 AVAILABLE=30 UNLOADING=40 END=50"
    ),
    "grpc.health.v1.HealthCheckResponse.ServingStatus": (
        "UNKNOWN=0 SERVING=1 NOT_SERVING=2 SERVICE_UNKNOWN=3"
    ),
}
_MESSAGES = {  # as a .proto writes them; "oneof NAME: " before a field makes it a member
    "tensorflow.TensorShapeProto": (
        "repeated tensorflow.TensorShapeProto.Dim dim = 2",
        "bool unknown_rank = 3",
    ),
    "tensorflow.TensorShapeProto.Dim": ("int64 size = 1", "string name = 2"),
    "tensorflow.TensorProto": (
        "tensorflow.DataType dtype = 1",
        "tensorflow.TensorShapeProto tensor_shape = 2",
        "bytes tensor_content = 4",
        "repeated float float_val = 5",
        "repeated double double_val = 6",
        "repeated int32 int_val = 7",
        "repeated bytes string_val = 8",
        "repeated int64 int64_val = 10",
        "repeated bool bool_val = 11",
        "repeated int32 half_val = 13",
        "repeated uint32 uint32_val = 16",
        "repeated uint64 uint64_val = 17",
    ),
    "tensorflow.TensorInfo": (
        "oneof encoding: string name = 1",
        "tensorflow.DataType dtype = 2",
        "tensorflow.TensorShapeProto tensor_shape = 3",
    ),
    "tensorflow.SignatureDef": (
        "map<tensorflow.TensorInfo> inputs = 1",
        "map<tensorflow.TensorInfo> outputs = 2",
        "string method_name = 3",
        "map<tensorflow.TensorProto> defaults = 4",
    ),
    "tensorflow.serving.ModelSpec": (
        "string name = 1",
        "oneof version_choice: google.protobuf.Int64Value version = 2",
        "string signature_name = 3",
        "oneof version_choice: string version_label = 4",
    ),
    "tensorflow.serving.PredictRequest": (
        "tensorflow.serving.ModelSpec model_spec = 1",
        "map<tensorflow.TensorProto> inputs = 2",
        "repeated string output_filter = 3",
    ),
    "tensorflow.serving.PredictResponse": (
        "map<tensorflow.TensorProto> outputs = 1",
        "tensorflow.serving.ModelSpec model_spec = 2",
    ),
    "tensorflow.serving.SignatureDefMap": ("map<tensorflow.SignatureDef> signature_def = 1",),
    "tensorflow.serving.GetModelMetadataRequest": (
        "tensorflow.serving.ModelSpec model_spec = 1",
        "repeated string metadata_field = 2",
    ),
    "tensorflow.serving.GetModelMetadataResponse": (
        "tensorflow.serving.ModelSpec model_spec = 1",
        "map<google.protobuf.Any> metadata = 2",
    ),
    "tensorflow.serving.StatusProto": (
        "tensorflow.error.Code error_code = 1",
        "string error_message = 2",
    ),
    "tensorflow.serving.ModelVersionStatus": (
        "int64 version = 1",
        "tensorflow.serving.ModelVersionStatus.State state = 2",
        "tensorflow.serving.StatusProto status = 3",
    ),
    "tensorflow.serving.GetModelStatusRequest": ("tensorflow.serving.ModelSpec model_spec = 1",),
    "tensorflow.serving.GetModelStatusResponse": (
        "repeated tensorflow.serving.ModelVersionStatus model_version_status = 1",
    ),
    "grpc.health.v1.HealthCheckRequest": ("string service = 1",),
    "grpc.health.v1.HealthCheckResponse": (
        "grpc.health.v1.HealthCheckResponse.ServingStatus status = 1",
    ),
}
_PACKAGES = ("tensorflow", "tensorflow.error", "tensorflow.serving", "grpc.health.v1")
_FIELD = re.compile(
    r"(?:oneof (?P<oneof>\w+): )?(?P<label>repeated |map<)?(?P<type>[\w.]+)>? (?P<name>\w+)"
    r" = (?P<number>\d+)"
)
_Field = descriptor_pb2.FieldDescriptorProto


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for module in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    files = {
        package: descriptor_pb2.FileDescriptorProto(
            name=f"{package}.proto", package=package, syntax="proto3"
        )
        for package in _PACKAGES
    }
    messages = {name: _container(files, name).add() for name in _MESSAGES if not _nested(name)}
    messages |= {name: _container(messages, name).add() for name in _MESSAGES if _nested(name)}
    for name, fields in _MESSAGES.items():
        messages[name].name = name.rpartition(".")[2]
        for text in fields:
            _add_field(messages[name], name, text)
    for name, values in _ENUMS.items():
        parent = messages.get(name.rpartition(".")[0]) or files[name.rpartition(".")[0]]
        enum = parent.enum_type.add(name=name.rpartition(".")[2])
        for value in values.split():
            key, _, number = value.partition("=")
            enum.value.add(name=key, number=int(number))
    files["tensorflow.serving"].dependency.extend(
        [any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name]
        + [files[package].name for package in ("tensorflow", "tensorflow.error")]
    )
    for package in _PACKAGES:  # dependencies come first
        pool.AddSerializedFile(files[package].SerializeToString())
    return pool


def _nested(name: str) -> bool:
    return name.rpartition(".")[0] in _MESSAGES


def _container(parents, name: str):
    parent = parents[name.rpartition(".")[0]]
    return parent.nested_type if _nested(name) else parent.message_type


def _add_field(parent: descriptor_pb2.DescriptorProto, parent_name: str, text: str) -> None:
    match = _FIELD.fullmatch(text)
    assert match, text
    field = parent.field.add(name=match["name"], number=int(match["number"]))
    field.label = _Field.LABEL_REPEATED if match["label"] else _Field.LABEL_OPTIONAL
    type_name = match["type"]
    if match["label"] == "map<":
        entry = parent.nested_type.add(name=f"{match['name'].title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "string key = 1")
        _add_field(entry, "", f"{type_name} value = 2")
        type_name = f"{parent_name}.{entry.name}"
    if match["oneof"]:
        if match["oneof"] not in [oneof.name for oneof in parent.oneof_decl]:
            parent.oneof_decl.add(name=match["oneof"])
        field.oneof_index = [o.name for o in parent.oneof_decl].index(match["oneof"])
    if "." not in type_name:
        field.type = getattr(_Field, f"TYPE_{type_name.upper()}")
    else:
        field.type = _Field.TYPE_ENUM if type_name in _ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{type_name}"


POOL = _pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


TensorProto = _message("tensorflow.TensorProto")
SignatureDef = _message("tensorflow.SignatureDef")
ModelSpec = _message("tensorflow.serving.ModelSpec")
PredictRequest = _message("tensorflow.serving.PredictRequest")
PredictResponse = _message("tensorflow.serving.PredictResponse")
SignatureDefMap = _message("tensorflow.serving.SignatureDefMap")
GetModelMetadataRequest = _message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = _message("tensorflow.serving.GetModelMetadataResponse")
GetModelStatusRequest = _message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = _message("tensorflow.serving.GetModelStatusResponse")
HealthCheckRequest = _message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = _message("grpc.health.v1.HealthCheckResponse")


def serialize(message: Message) -> bytes:
    """The bytes of a message."""
    return message.SerializeToString()


_DATA_TYPES = {  # NumPy -> DataType, TensorFlow's name, the field of typed values
    "float32": (1, "float", "float_val"),
    "float64": (2, "double", "double_val"),
    "int32": (3, "int32", "int_val"),
    "uint8": (4, "uint8", "int_val"),
    "int16": (5, "int16", "int_val"),
    "int8": (6, "int8", "int_val"),
    "object": (7, "string", "string_val"),
    "int64": (9, "int64", "int64_val"),
    "bool": (10, "bool", "bool_val"),
    "uint16": (17, "uint16", "int_val"),
    "float16": (19, "half", "half_val"),
    "uint32": (22, "uint32", "uint32_val"),
    "uint64": (23, "uint64", "uint64_val"),
}
_BY_NUMBER = {number: (np.dtype(name), field) for name, (number, _, field) in _DATA_TYPES.items()}


def data_type(dtype: np.dtype | str) -> int:
    """Number of a NumPy type in `tensorflow.DataType`; ValueError if TensorFlow has none."""
    return _data_type(np.dtype(dtype))[0]


def numpy_type(number: int) -> np.dtype:
    """The NumPy type of a `tensorflow.DataType`; ValueError if there is none here."""
    return _by_number(number)[0]


def type_name(dtype: np.dtype | str) -> str:
    """TensorFlow's word for a NumPy type: "float" for float32, "string" for objects."""
    return _data_type(np.dtype(dtype))[1]


def _by_number(number: int) -> tuple[np.dtype, str]:
    try:
        return _BY_NUMBER[number]
    except KeyError:
        raise ValueError(f"data type {number} is not supported") from None


def _data_type(dtype: np.dtype) -> tuple[int, str, str]:
    try:
        return _DATA_TYPES[dtype.name]
    except KeyError:
        raise ValueError(f"TensorFlow has no data type for {dtype}") from None


def shape_text(shape: tuple[int, ...] | None) -> str:
    """A shape as TensorFlow Serving prints it: "[-1,4]", or "[?]" for an unknown rank."""
    return "[?]" if shape is None else f"[{','.join(map(str, shape))}]"


def to_array(tensor: Message) -> np.ndarray:
    """Decodes a TensorProto from its `tensor_content` or its typed values; read-only.

    As `tensorflow::Tensor::FromProto`: fewer values than elements repeat the last one, none are
    zeros, surplus ones are dropped.

    Raises:
        ValueError: unknown type, unknown or negative dimension, or content of the wrong length.
    """
    dtype, field = _by_number(tensor.dtype)
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("the shape is not fully known")
    content = tensor.tensor_content
    if content and field != "string_val":
        return np.frombuffer(content, dtype).reshape(shape)
    values = getattr(tensor, field)
    size = 1
    for length in shape:  # Python's integers do not overflow
        size *= length
    if len(values) < size and size > MAX_REPEATED_ELEMENTS:
        raise ValueError(f"{len(values)} values are given for {size} elements")
    if field == "string_val":
        array = np.empty(min(len(values), size), object)
        array[:] = list(values[:size])
    elif field == "half_val":
        array = np.array(values[:size], np.uint16).view(np.float16)
    else:
        array = np.array(values[:size]).astype(dtype)
    if len(array) < size:
        last = array[-1] if len(array) else (b"" if field == "string_val" else 0)
        array = np.concatenate([array, np.full(size - len(array), last, dtype)])
    return array.reshape(shape)


def fill_tensor(tensor: Message, array: np.ndarray, *, as_content: bool) -> None:
    """Encodes an array into an empty TensorProto, as raw bytes or as typed values.

    Raises:
        ValueError: TensorFlow has no such data type.
    """
    number, _, field = _data_type(array.dtype)
    tensor.dtype = number
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if as_content and field != "string_val":
        tensor.tensor_content = array.tobytes()
    elif field == "half_val":
        tensor.half_val.extend(array.view(np.uint16).ravel().tolist())
    else:
        getattr(tensor, field).extend(array.ravel().tolist())
