"""The messages against the official descriptors, and tensors against TensorFlow's own codec."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2  # noqa: F401 - these imports register their descriptors
from tensorflow_serving.apis import (  # noqa: F401
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from serving import wire

ARRAYS = [
    np.array([[1.5, -2.25]], np.float32),
    np.array(3.0, np.float64),
    np.array([-1, 2**31 - 1], np.int32),
    np.array([255, 0], np.uint8),
    np.array([-32768], np.int16),
    np.array([-128], np.int8),
    np.array([b"a", b""], object),
    np.array([-(2**63)], np.int64),
    np.array([True, False]),
    np.array([65535], np.uint16),
    np.array([0.5, -65504], np.float16),
    np.array([2**32 - 1], np.uint32),
    np.array([2**64 - 1], np.uint64),
    np.zeros((2, 0, 3), np.float32),
]


@pytest.mark.parametrize("name", wire._MESSAGES)
def test_fields_equal_the_official_ones(name):
    ours = wire.POOL.FindMessageTypeByName(name)
    official = descriptor_pool.Default().FindMessageTypeByName(name)
    assert ours.fields
    for field in ours.fields:
        theirs = official.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (
            theirs.number,
            theirs.type,
            theirs.is_repeated,
        )
        for kind in ("message_type", "enum_type", "containing_oneof"):
            mine, other = getattr(field, kind), getattr(theirs, kind)
            assert (mine and mine.full_name) == (other and other.full_name)


@pytest.mark.parametrize("name", wire._ENUMS)
def test_enum_values_equal_the_official_ones(name):
    ours = wire.POOL.FindEnumTypeByName(name).values_by_name
    official = descriptor_pool.Default().FindEnumTypeByName(name).values_by_name
    assert ours
    assert {k: v.number for k, v in ours.items()}.items() <= {
        k: v.number for k, v in official.items()
    }.items()


@pytest.mark.parametrize("array", ARRAYS, ids=lambda x: f"{x.dtype}{x.shape}")
def test_decodes_what_tensorflow_encodes(array):
    theirs = tf.make_tensor_proto(array, shape=array.shape)  # content, or values for strings
    decoded = wire.to_array(wire.TensorProto.FromString(theirs.SerializeToString()))
    np.testing.assert_array_equal(decoded, array)
    assert decoded.dtype == array.dtype


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda x: f"{x.dtype}{x.shape}")
def test_tensorflow_decodes_what_we_encode(array, as_content):
    ours = wire.TensorProto()
    wire.fill_tensor(ours, array, as_content=as_content)
    theirs = tf.make_ndarray(_official(ours))
    np.testing.assert_array_equal(theirs, array)
    np.testing.assert_array_equal(wire.to_array(ours), array)
    has_content = bool(ours.tensor_content)
    assert has_content == (as_content and array.dtype != object and array.size > 0)


def _official(ours):
    return predict_pb2.PredictRequest.FromString(
        wire.PredictRequest(inputs={"x": ours}).SerializeToString()
    ).inputs["x"]


def _tensor(values, shape):
    tensor = wire.TensorProto(dtype=1, float_val=values)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        ([1, 2], (4,), [1, 2, 2, 2]),  # the last value repeats
        ([7], (2, 2), [[7, 7], [7, 7]]),
        ([], (3,), [0, 0, 0]),  # none at all are zeros
        ([1, 2, 3], (2,), [1, 2]),  # surplus values are dropped
        ([1, 2], (), 1),
        ([], (0, 4), np.zeros((0, 4))),
    ],
)
def test_values_fill_the_shape(values, shape, expected):
    np.testing.assert_array_equal(wire.to_array(_tensor(values, shape)), expected)


@pytest.mark.parametrize(
    "tensor",
    [
        wire.TensorProto(dtype=0, float_val=[1]),
        wire.TensorProto(dtype=8),  # complex64 is not served
        _tensor([1], (-1,)),
        wire.TensorProto(dtype=1, tensor_shape={"unknown_rank": True}),
        wire.TensorProto(dtype=1, tensor_content=b"12345", tensor_shape={"dim": [{"size": 1}]}),
        _tensor([1], (1 << 40, 1 << 40)),  # four bytes may not conjure up a terabyte
    ],
)
def test_refuses_tensors_that_cannot_be(tensor):
    with pytest.raises(ValueError, match=r"."):
        wire.to_array(tensor)


def test_names_types_as_tensorflow_does():
    assert wire.type_name(np.float32) == "float"
    assert wire.type_name("int64") == "int64"
    with pytest.raises(ValueError, match="complex64"):
        wire.data_type(np.complex64)
