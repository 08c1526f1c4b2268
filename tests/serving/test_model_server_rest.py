"""The REST API over HTTP, against `python -m launch.serve` as a process; texts as TensorFlow's."""

import http.client
import json
import math
import socket

import numpy as np
import pytest

from serving import json_tensor
from serving.signatures import Signature, TensorInfo
from serving.status import ServingError
from tests.serving.servers import half_plus_two, policy, write_version

ROW = {"observation": [0.1, 0.2, 0.3, 0.4], "action_mask": [True, True, False]}
PREDICT = "/v1/models/policy:predict"


@pytest.fixture(scope="module")
def server(tmp_path_factory, start_server):
    base = tmp_path_factory.mktemp("policy")
    write_version(base, 12, policy())
    return start_server(base, "policy", "--rest_api_timeout_in_ms=2000", rest=True)


@pytest.fixture(scope="module")
def half(tmp_path_factory, start_server):
    base = tmp_path_factory.mktemp("half")
    write_version(base, 123, half_plus_two())
    return start_server(base, "half", rest=True)


def call(server, method, path, body=None):
    """Status, content type and parsed answer."""
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=20)
    try:
        if isinstance(body, dict | list):
            body = json.dumps(body)
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
        return response.status, response.headers["Content-Type"], json.loads(content or "null")
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": [1.0, 2.0, 5.0]}, {"predictions": [2.5, 3.0, 4.5]}),
        ({"instances": [1, 2, 5]}, {"predictions": [2.5, 3.0, 4.5]}),
        ({"instances": [{"x": 1.0}]}, {"predictions": [2.5]}),
        ({"inputs": [1.0, 2.0]}, {"outputs": [2.5, 3.0]}),
        ({"inputs": {"x": [5.0]}}, {"outputs": [4.5]}),
        ({"signature_name": "serving_default", "inputs": [0]}, {"outputs": [2.0]}),
        ('{"instances": [0.4]} trailing bytes are ignored', {"predictions": [2.2]}),
        (' \n{"instances": [0]}', {"predictions": [2.0]}),
    ],
)
def test_predicts_half_plus_two(half, body, answer):
    for path in ("/v1/models/half:predict", "/v1/models/half/versions/123:predict"):
        assert call(half, "POST", path, body) == (200, "application/json", answer)


def test_several_tensors_come_as_objects_or_columns(server):
    status, _, by_row = call(server, "POST", PREDICT, {"instances": [ROW, ROW]})
    assert status == 200
    assert len(by_row["predictions"]) == 2
    first = by_row["predictions"][0]
    assert first.keys() == {"action", "log_prob", "value"}
    assert isinstance(first["action"], int)
    columns = {name: [value, value] for name, value in ROW.items()}
    _, _, by_column = call(server, "POST", PREDICT, {"inputs": columns})
    assert by_column == {"outputs": {name: [value] * 2 for name, value in first.items()}}
    inputs = {
        "observation": np.array([ROW["observation"]], np.float32),
        "action_mask": np.array([ROW["action_mask"]]),
    }
    expected = policy().function(policy().leaves, inputs)
    assert math.isclose(first["log_prob"], expected["log_prob"][0], rel_tol=1e-5)


def test_status(server):
    entry = {
        "version": "12",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("/v1/models/policy", "/V1/MODELS/policy/versions/12", "/v1/models/p%6flicy"):
        answer = (200, "application/json", {"model_version_status": [entry]})
        assert call(server, "GET", path) == answer


def test_metadata(half):
    status, _, document = call(half, "GET", "/v1/models/half/metadata")
    assert status == 200
    spec = {"name": "half", "signature_name": "", "version": "123"}
    assert document["model_spec"] == spec
    x = {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "serving_default_x:0",
    }
    assert document["metadata"]["signature_def"]["signature_def"]["serving_default"] == {
        "inputs": {"x": x},
        "outputs": {"y": x | {"name": "StatefulPartitionedCall:0"}},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


UNKNOWN = "Servable not found for request: "
ERRORS = {
    "empty": ("POST", PREDICT, "", 400, "JSON Parse error: The document is empty"),
    "no JSON": ("POST", PREDICT, "{x", 400, "JSON Parse error: Invalid value. at offset: 1"),
    "cut": ("POST", PREDICT, '{"a": [1', 400, "JSON Parse error: Invalid value. at offset: 8"),
    "no UTF-8": (
        *("POST", PREDICT, b'{"a\xff": 1}', 400),
        "JSON Parse error: Invalid encoding in string. at offset: 3",
    ),
    "nested": (
        *("POST", PREDICT, '{"inputs": ' + "[" * 100_000, 400),
        "JSON Parse error: The document is nested too deeply",
    ),
    "huge integer": (
        *("POST", PREDICT, f'{{"inputs": {"9" * 5000}}}', 400),
        "JSON Parse error: Number too big to be stored in double.",
    ),
    "no object": ("POST", PREDICT, [], 400, "JSON Value: [] Is not object"),
    "neither": ("POST", PREDICT, {}, 400, "Missing 'inputs' or 'instances' key"),
    "signature": (
        *("POST", PREDICT, {"signature_name": 1}, 400),
        'JSON Value: {\n    "signature_name": 1\n} not formatted correctly. '
        "'signature_name' key must be a string value.",
    ),
    "unknown signature": (
        *("POST", PREDICT, {"signature_name": "nope", "inputs": {}}, 400),
        'Serving signature name: "nope" not found in signature def',
    ),
    "unknown model": ("POST", "/v1/models/m:predict", {}, 404, f"{UNKNOWN}Latest(m)"),
    "unknown version": (
        *("POST", "/v1/models/policy/versions/7:predict", {}, 404),
        f"{UNKNOWN}Specific(policy, 7)",
    ),
    "huge version": (
        *("POST", f"/v1/models/policy/versions/{2**63}:predict", {}, 400),
        f"Failed to convert version: {2**63} to numeric.",
    ),
    "label": (
        *("POST", "/v1/models/policy/labels/stable:predict", {}, 400),
        "Unrecognized servable version label: stable",
    ),
    "plain list": (
        *("POST", PREDICT, {"instances": [1]}, 400),
        "instances is a plain list, but expecting list of objects as multiple input tensors "
        "required as per tensorinfo_map",
    ),
    "plain inputs": (
        *("POST", PREDICT, {"inputs": [1]}, 400),
        "inputs is a plain value/list, but expecting an object as multiple input tensors "
        "required as per tensorinfo_map",
    ),
    "missing column": (
        *("POST", PREDICT, {"inputs": {"observation": []}}, 400),
        "Missing named input: action_mask in 'inputs' object.",
    ),
    "missing key": (
        *("POST", PREDICT, {"instances": [{"action_mask": [True]}]}, 400),
        "Failed to process element: 0 of 'instances' list. JSON object: {\n    "
        '"action_mask": [\n        true\n    ]\n} keys must be equal to: action_mask,observation',
    ),
    "type": (
        *("POST", PREDICT, {"instances": [ROW, ROW | {"observation": ["x"]}]}, 400),
        "Failed to process element: 1 key: observation of 'instances' list. Error: "
        'INVALID_ARGUMENT: JSON Value: "x" Type: String is not of expected type: float',
    ),
    "shape": (
        *("POST", PREDICT, {"instances": [ROW | {"observation": [1.0]}]}, 400),
        'Input "observation" does not match the signature: expected float of shape [-1,4], got '
        "float of shape [1,1]",
    ),
    "NaN": (
        *("POST", PREDICT, {"instances": [ROW | {"observation": [0, math.nan, 0, 0]}]}, 400),
        'Input "observation" of shape [1,4] is not finite: nan at [0,1]',
    ),
    "mask": (
        *("POST", PREDICT, {"instances": [ROW | {"action_mask": [False] * 3}]}, 400),
        'Input "action_mask" of shape [1,3] forbids every action in row 0; each row must allow at '
        "least one",
    ),
    "no name": ("GET", "/v1/models", None, 400, "Missing model name in request."),
    "no such status": (
        *("GET", "/v1/models/m", None, 404),
        "Could not find any versions of model m",
    ),
    "no such version": (
        *("GET", "/v1/models/policy/versions/7", None, 404),
        "Could not find version 7 of model policy",
    ),
    "metadata of none": ("GET", "/v1/models/m/metadata", None, 404, f"{UNKNOWN}Latest(m)"),
    "method": ("PUT", PREDICT, None, 400, f"Malformed request: PUT {PREDICT}"),
    "path": ("GET", "/v1/nothing", None, 400, "Malformed request: GET /v1/nothing"),
    "get predict": ("GET", PREDICT, None, 400, f"Malformed request: GET {PREDICT}"),
    "classify": ("POST", "/v1/models/policy:classify", {}, 501, "classify is not implemented"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refuses(server, case):
    method, path, body, status, text = ERRORS[case]
    assert call(server, method, path, body) == (status, "application/json", {"error": text})


def test_both_formats_at_once_are_refused(server):
    status, _, answer = call(server, "POST", PREDICT, {"inputs": [1], "instances": [1]})
    assert status == 400
    assert answer["error"].endswith(
        "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
    )


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/models/policy", "/metrics"])
def test_other_paths_are_not_found(server, path):
    assert call(server, "GET", path)[0] == 404


def exchange(server, data):
    """Sends raw bytes; everything that comes back until the server closes."""
    with socket.create_connection(("localhost", server.rest_port), timeout=20) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_connections_are_kept(server):
    get = b"GET /v1/models/policy HTTP/1.1\r\nHost: x\r\n"
    answer = exchange(server, get + b"\r\n" + get + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_malformed_http_is_answered_and_hurts_nobody_else(server):
    assert exchange(server, b"\x00\x01 no HTTP\r\n\r\n").startswith(b"HTTP/1.0 400")
    assert call(server, "GET", "/v1/models/policy")[0] == 200


def test_slow_bodies_time_out(server):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\n"
    answer = exchange(server, head.encode() + b"{")
    assert answer.startswith(b"HTTP/1.1 504")
    assert b"The request took longer than 2000 ms" in answer


@pytest.mark.parametrize("length", [f"Content-Length: {1 << 40}", "Transfer-Encoding: chunked"])
def test_bodies_have_a_limit(server, length):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n"
    with socket.create_connection(("localhost", server.rest_port), timeout=20) as connection:
        connection.sendall(head.encode())
        if "chunked" in length:
            chunk = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
            for _ in range(65):  # MiB; the limit is 64
                connection.sendall(chunk)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def signature(**inputs):
    return Signature({k: TensorInfo(np.dtype(t), s, k) for k, (t, s) in inputs.items()}, {})


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("int32", 1.0, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("int32", 2**31, "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        ("uint8", 256, "JSON Value: 256 Type: Number is not of expected type: uint8"),
        ("float32", True, "JSON Value: true Type: True is not of expected type: float"),
        ("float32", None, "JSON Value: null Type: Null is not of expected type: float"),
        ("bool", 1, "JSON Value: 1 Type: Number is not of expected type: bool"),
        ("object", 1, "JSON Value: 1 Type: Number is not of expected type: string"),
        (
            "float32",
            2**24,
            "Cannot convert JSON value: 16777216 to float without loss of precision.",
        ),
        (
            "float32",
            1e39,
            "Cannot convert JSON value: 1e+39 to float without loss of precision.",
        ),
        ("object", {"b64": "!"}, "Unable to base64 decode"),
    ],
)
def test_values_of_the_wrong_type(dtype, value, text):
    with pytest.raises(ServingError) as error:
        json_tensor.from_columns({"x": [value]}, signature(x=(dtype, (-1,))))
    assert error.value.message == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            [[1, 2], [1, 2, 3]],
            "Encountered list at unexpected size: 3 at level: 1 expected size: 2",
        ),
        (
            [[1], 2],
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ([1, [2]], "Encountered list at unexpected level: 1 expected < 1"),
    ],
)
def test_ragged_values(value, text):
    with pytest.raises(ServingError) as error:
        json_tensor.from_columns({"x": value}, signature(x=("float32", (-1, 2))))
    assert error.value.message == text


@pytest.mark.parametrize(
    ("instances", "text"),
    [
        ([[1, 2], [1, 2, 3]], "Expecting tensor size: 2 but got: 3"),
        ([[1, 2], [[1], [2]]], "Expecting shape [2] but got: [2,1]"),
    ],
)
def test_rows_of_unequal_shape(instances, text):
    with pytest.raises(ServingError) as error:
        json_tensor.from_rows(instances, signature(x=("float32", (-1, 2))))
    assert error.value.message == (
        f"Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: {text}"
    )


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([0.2, 1, 9e6, 1e-5], np.float32), "[0.2, 1.0, 9000000.0, 1e-05]"),
        (np.array([1 / 3], np.float32), "[0.33333334]"),  # shortest that reads back the same
        (np.array([1 / 3]), "[0.3333333333333333]"),
        (np.array([np.nan, np.inf, -np.inf], np.float32), "[NaN, Infinity, -Infinity]"),
        (np.array([True, False]), "[true, false]"),
        (np.array([[1], [2]], np.int64), "[[1], [2]]"),
        (np.array([b"caf\xc3\xa9"], object), r'["caf\u00e9"]'),
    ],
)
def test_outputs_are_written_as_json(array, text):
    for by_row, key in ((True, "predictions"), (False, "outputs")):
        assert json_tensor.to_json({"x": array}, by_row=by_row) == f'{{"{key}": {text}}}'.encode()


def test_names_that_end_in_bytes_are_base64():
    outputs = {"image_bytes": np.array([b"\x00\xff"], object)}
    assert json_tensor.to_json(outputs, by_row=False) == b'{"outputs": [{"b64": "AP8="}]}'
    read = json_tensor.from_rows([{"b64": "AP8="}], signature(x=("object", (-1,))))
    assert read["x"].tolist() == [b"\x00\xff"]


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"a": np.zeros(()), "b": np.zeros(1)}, "Tensor name: a has no shape information "),
        (
            {"a": np.zeros(3), "v": np.zeros(1)},
            "Tensor name: v has inconsistent batch size: 1 expecting: 3",
        ),
    ],
)
def test_outputs_that_are_no_rows(outputs, text):
    with pytest.raises(ServingError) as error:
        json_tensor.to_json(outputs, by_row=True)
    assert error.value.message == text
