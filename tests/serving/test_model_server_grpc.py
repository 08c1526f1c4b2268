"""The gRPC API through the official stubs, against `python -m launch.serve` as a process.

Codes and texts are TensorFlow Serving's; the modules that raise them say where they come from.
"""

import asyncio
import concurrent.futures
import signal

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving import model_server
from tests.serving.servers import half_plus_two, policy, write_version

Code = grpc.StatusCode
AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE
OBSERVATION = [[0.1, 0.2, 0.3, 0.4]]
MASK = [[True, True, False]]


@pytest.fixture(scope="module")
def half(tmp_path_factory, start_server):
    base = tmp_path_factory.mktemp("half")
    write_version(base, 123, half_plus_two())
    (base / "tmp.124").mkdir()  # no number: not a version
    (base / "7").touch()  # no directory
    return start_server(base, "half", "--enable_grpc_healthcheck_service")


@pytest.fixture(scope="module")
def masked(tmp_path_factory, start_server):
    base = tmp_path_factory.mktemp("policy")
    write_version(base, 1, policy())
    return start_server(base, "policy", "--enable_serialization_as_tensor_content")


@pytest.fixture(scope="module")
def batching(tmp_path_factory, start_server):
    base = tmp_path_factory.mktemp("batching")
    write_version(base, 1, policy())
    return start_server(base, "policy", "--enable_batching")


def predict(server, request, timeout=20):
    return prediction_service_pb2_grpc.PredictionServiceStub(server.channel).Predict(
        request, timeout=timeout
    )


def metadata(server, request):
    return prediction_service_pb2_grpc.PredictionServiceStub(server.channel).GetModelMetadata(
        request, timeout=20
    )


def status(server, request):
    return model_service_pb2_grpc.ModelServiceStub(server.channel).GetModelStatus(
        request, timeout=20
    )


def make_request(name="half", *, version=None, label=None, signature="", outputs=(), **inputs):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for key, value in inputs.items():
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
    return request


def masked_request(**changes):
    return make_request(
        **{"name": "policy", "observation": OBSERVATION, "action_mask": MASK} | changes
    )


def test_says_when_it_is_ready(half):
    assert half.ready_line == f"serving half on grpc 0.0.0.0:{half.port}\n"


def test_predicts_half_plus_two(half):
    response = predict(half, make_request(x=[1.0, 2.0, 5.0]))
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert not response.outputs["y"].tensor_content
    assert response.outputs["y"].dtype == tf.float32.as_datatype_enum
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [3]
    assert response.model_spec.name == "half"
    assert response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == 123


def test_takes_typed_values_and_repeats_the_last(half):
    request = make_request(version=123, signature="serving_default")
    request.inputs["x"].dtype = tf.float32.as_datatype_enum
    request.inputs["x"].float_val.extend([1, 2])
    request.inputs["x"].tensor_shape.dim.add(size=4)
    assert list(predict(half, request).outputs["y"].float_val) == [2.5, 3, 3, 3]


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 21])  # 8 is the largest batch: 9 = 8+1, 21 = 8+8+5
def test_any_number_of_rows_runs_without_batching(half, rows):
    x = np.arange(rows, dtype=np.float32)
    np.testing.assert_array_equal(
        predict(half, make_request(x=x)).outputs["y"].float_val, x / 2 + 2
    )


def test_answers_in_tensor_content_when_told_to(masked):
    outputs = predict(masked, masked_request()).outputs
    assert set(outputs) == {"action", "log_prob", "value"}
    assert all(tensor.tensor_content for tensor in outputs.values())
    assert outputs["action"].dtype == tf.int32.as_datatype_enum
    assert tf.make_ndarray(outputs["action"])[0] in (0, 1)  # 2 is masked


def test_output_filter_selects(masked):
    assert set(predict(masked, masked_request(outputs=["value", "action"])).outputs) == {
        "action",
        "value",
    }


SIZE = "input size does not match signature: "
INVALID = {
    "no spec": (predict_pb2.PredictRequest(), "Missing ModelSpec"),
    "no name": (masked_request(name=""), "ModelSpec has no name specified."),
    "unknown label": (
        masked_request(label="stable"),
        "Unrecognized servable version label: stable",
    ),
    "too few inputs": (
        make_request("policy", observation=OBSERVATION),
        f"{SIZE}1!=2 len({{observation}}) != len({{action_mask,observation}}). "
        "Sent extra: {}. Missing but required: {action_mask}.",
    ),
    "too many inputs": (
        masked_request(seed=[1]),
        f"{SIZE}3!=2 len({{action_mask,observation,seed}}) != len({{action_mask,observation}}). "
        "Sent extra: {seed}. Missing but required: {}.",
    ),
    "misnamed input": (
        make_request("policy", observation=OBSERVATION, mask=MASK),
        "Signature input alias: action_mask(feed name: serving_default_action_mask:0) not found in "
        "request and no default value provided. Inputs expected to be in the request "
        "{mask,observation}, or default input alias set: ",
    ),
    "unknown output": (
        masked_request(outputs=["logits"]),
        "output tensor alias not found in signature: logits Outputs expected to be in the set "
        "{action,log_prob,value}.",
    ),
    "output named twice": (
        masked_request(outputs=["value", "value"]),
        "duplicate output tensor alias: value",
    ),
    "wrong shape": (
        masked_request(observation=[[1.0, 2.0]]),
        'Input "observation" does not match the signature: expected float of shape [-1,4], got '
        "float of shape [1,2]",
    ),
    "wrong rank": (
        masked_request(observation=[1.0, 2.0, 3.0, 4.0]),
        'Input "observation" does not match the signature: expected float of shape [-1,4], got '
        "float of shape [4]",
    ),
    "wrong type": (
        masked_request(observation=[[1, 2, 3, 4]]),
        'Input "observation" does not match the signature: expected float of shape [-1,4], got '
        "int64 of shape [1,4]",
    ),
    "empty batch": (
        masked_request(observation=np.zeros((0, 4)), action_mask=np.zeros((0, 3), bool)),
        'Input "action_mask" is empty: its shape is [0,3], expected [-1,3] with at least one '
        "element",
    ),
    "NaN": (
        masked_request(observation=[[1.0, 2.0, np.nan, 4.0]]),
        'Input "observation" of shape [1,4] is not finite: nan at [0,2]',
    ),
    "infinity": (
        masked_request(observation=[[1.0, 2.0, 3.0, -np.inf]]),
        'Input "observation" of shape [1,4] is not finite: -inf at [0,3]',
    ),
    "everything forbidden": (
        masked_request(
            observation=OBSERVATION * 2, action_mask=[[True, False, False], [False] * 3]
        ),
        'Input "action_mask" of shape [2,3] forbids every action in row 1; each row must allow at '
        "least one",
    ),
    "unequal batches": (
        masked_request(observation=OBSERVATION * 2),
        "Input tensors must have equal 0th-dimension size: action_mask [1,3], observation [2,4]",
    ),
}
OTHER_ERRORS = {
    "unknown model": (
        masked_request(name="nobody"),
        Code.NOT_FOUND,
        "Servable not found for request: Latest(nobody)",
    ),
    "unknown version": (
        masked_request(version=7),
        Code.NOT_FOUND,
        "Servable not found for request: Specific(policy, 7)",
    ),
    "unknown signature": (
        masked_request(signature="nope"),
        Code.FAILED_PRECONDITION,
        'Serving signature key "nope" not found.',
    ),
}


@pytest.mark.parametrize("case", [*INVALID, *OTHER_ERRORS])
def test_predict_refuses(masked, case):
    if case in INVALID:
        (request, text), code = INVALID[case], Code.INVALID_ARGUMENT
    else:
        request, code, text = OTHER_ERRORS[case]
    with pytest.raises(grpc.RpcError) as error:
        predict(masked, request)
    assert (error.value.code(), error.value.details()) == (code, text)


def test_predict_refuses_a_broken_tensor(masked):
    request = masked_request()
    request.inputs["observation"].tensor_content = b"123"
    with pytest.raises(grpc.RpcError) as error:
        predict(masked, request)
    assert error.value.code() == Code.INVALID_ARGUMENT
    assert error.value.details() == "tensor parsing error: observation"


def test_long_messages_are_cut(masked):
    name = "x" * 2000
    with pytest.raises(grpc.RpcError) as error:
        predict(masked, masked_request(name=name))
    text = f"Servable not found for request: Latest({name})"
    assert error.value.details() == f"{text[:1024]}...TRUNCATED"


def test_a_late_answer_is_a_deadline_exceeded_and_hurts_nobody_else(masked):
    masked.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(grpc.RpcError) as error:
            predict(masked, masked_request(), timeout=0.2)
    finally:
        masked.process.send_signal(signal.SIGCONT)
    assert error.value.code() == Code.DEADLINE_EXCEEDED
    assert predict(masked, masked_request()).outputs


def test_a_request_that_is_late_already_is_not_run():
    class LateContext:
        def time_remaining(self):
            return -0.1

        async def abort(self, code, details):
            raise grpc.aio.AbortError(code, details)

    async def never(request):
        raise AssertionError("it ran")

    with pytest.raises(grpc.aio.AbortError) as error:
        asyncio.run(model_server._answering(never)(None, LateContext()))
    assert error.value.args[0] == Code.DEADLINE_EXCEEDED


def test_batches_have_a_size_when_batching_is_on(batching):
    request = masked_request(observation=OBSERVATION * 9, action_mask=MASK * 9)
    with pytest.raises(grpc.RpcError) as error:
        predict(batching, request)
    assert error.value.code() == Code.INVALID_ARGUMENT
    assert error.value.details() == "Task size 9 is larger than maximum input batch size 8"


@pytest.mark.parametrize("server", ["masked", "batching"])
def test_every_caller_gets_the_answer_to_its_own_rows(server, request):
    server, model = request.getfixturevalue(server), policy()
    rng = np.random.default_rng(1)

    def ask(rows):
        observation = rng_rows[rows]
        mask = np.ones((len(observation), 3), bool)
        mask[:, len(observation) % 3] = False
        outputs = predict(
            server, make_request("policy", observation=observation, action_mask=mask)
        ).outputs
        expected = model.function(model.leaves, {"observation": observation, "action_mask": mask})
        for name, tensor in outputs.items():
            np.testing.assert_allclose(
                tf.make_ndarray(tensor), expected[name], rtol=2e-5, atol=2e-6
            )
        return len(outputs)

    rng_rows = [rng.normal(size=(1 + i % 5, 4)).astype(np.float32) for i in range(200)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(200))) == {3}


def test_metadata_is_the_signature(masked):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "policy"
    response = metadata(masked, request)
    assert (response.model_spec.name, response.model_spec.version.value) == ("policy", 1)
    definitions = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(definitions)
    definition = definitions.signature_def["serving_default"]
    assert definition.method_name == "tensorflow/serving/predict"
    assert set(definition.outputs) == {"action", "log_prob", "value"}
    mask = definition.inputs["action_mask"]
    assert mask.dtype == tf.bool.as_datatype_enum
    assert [dim.size for dim in mask.tensor_shape.dim] == [-1, 3]


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        (None, ["signature_def"], "INVALID_ARGUMENT: Missing ModelSpec"),
        (
            *("policy", []),
            "INVALID_ARGUMENT: GetModelMetadataRequest must specify at least one metadata_field",
        ),
        ("policy", ["graph"], "INVALID_ARGUMENT: Metadata field graph is not supported"),
        ("m", ["signature_def"], "NOT_FOUND: Servable not found for request: Latest(m)"),
    ],
)
def test_metadata_refuses(masked, name, fields, text):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    if name:
        request.model_spec.name = name
    with pytest.raises(grpc.RpcError) as error:
        metadata(masked, request)
    assert f"{error.value.code().name}: {error.value.details()}" == text


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (None, "INVALID_ARGUMENT: Missing ModelSpec"),
        ({"name": "m"}, "NOT_FOUND: Could not find any versions of model m"),
        (
            {"name": "half", "version": {"value": 7}},
            "NOT_FOUND: Could not find version 7 of model half",
        ),
    ],
)
def test_status_refuses(half, spec, text):
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
    with pytest.raises(grpc.RpcError) as error:
        status(half, request)
    assert f"{error.value.code().name}: {error.value.details()}" == text


def test_status_ignores_labels(half):
    request = get_model_status_pb2.GetModelStatusRequest(
        model_spec={"name": "half", "version_label": "canary"}
    )
    (entry,) = status(half, request).model_version_status
    assert (entry.version, entry.state, entry.status.error_code) == (123, AVAILABLE, 0)


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("Classify", classification_pb2.ClassificationRequest()),
        ("Regress", regression_pb2.RegressionRequest()),
        ("MultiInference", inference_pb2.MultiInferenceRequest()),
    ],
)
def test_other_prediction_methods_are_unimplemented(half, method, request_message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(half.channel)
    with pytest.raises(grpc.RpcError) as error:
        getattr(stub, method)(request_message, timeout=20)
    assert error.value.code() == Code.UNIMPLEMENTED


def test_reload_config_is_unimplemented(half):
    stub = model_service_pb2_grpc.ModelServiceStub(half.channel)
    with pytest.raises(grpc.RpcError) as error:
        stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=20)
    assert error.value.code() == Code.UNIMPLEMENTED


def test_health_is_served_when_asked_for(half, masked):
    for service in ("", "PredictionService", "tensorflow.serving.ModelService"):
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(half.channel).Check(request, timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        health_pb2_grpc.HealthStub(masked.channel).Check(
            health_pb2.HealthCheckRequest(), timeout=20
        )
    assert error.value.code() == Code.UNIMPLEMENTED
