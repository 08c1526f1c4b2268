"""The real thing: TensorFlow writes, and a process without JAX reads. One export per module."""

import dataclasses
import datetime
import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from rljax.config import UsageError
from serving import bundle, parity
from serving.bundle import EXTRA, WARMUP, Signature
from tests.serving import toy_policies as toys

with warnings.catch_warnings():  # TensorFlow's own, while it is imported
    warnings.simplefilter("ignore")
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    from serving import export, verify

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow.*")
SPECS = {"discrete": toys.DISCRETE, "multi-discrete": toys.MULTI_DISCRETE, "box": toys.BOX}


@pytest.fixture(scope="module")
def made():
    return toys.bundled(toys.DISCRETE)


@pytest.fixture(scope="module")
def result(made, tmp_path_factory):
    return export.export(made, tmp_path_factory.mktemp("toy"), max_batch_size=6)


@pytest.fixture(scope="module")
def manifest(result):
    return json.loads((result.path / EXTRA / "manifest.json").read_text())


def predict(version_dir, signature, inputs):
    """As TensorFlow Serving: C++ loader, Session, the names of the signature's tensors."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        model = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version_dir))
        definition = model.signature_def[signature]
        assert definition.method_name == "tensorflow/serving/predict"
        fetches = {name: info.name for name, info in definition.outputs.items()}
        return session.run(fetches, {i.name: inputs[n] for n, i in definition.inputs.items()})


def names(path):
    """Names in a directory, hidden ones too."""
    return sorted(child.name for child in path.iterdir())


def test_the_result_tells_what_was_written(result):
    assert result.version == 1
    assert result.path.name == "1"
    assert result.parity_max_abs_diff <= 1e-5 * bundle.LARGE
    written = sum(f.stat().st_size for f in result.path.rglob("*") if f.is_file())
    assert result.size_bytes == written > 10_000
    assert names(result.path.parent) == ["1"]  # no temporary left


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("signature", list(Signature), ids=lambda s: s.value)
def test_the_saved_model_answers_as_the_policy_at_any_batch_size(made, result, signature, batch):
    rng = np.random.default_rng(batch)
    inputs = {
        "action_mask": rng.random((batch, 3)) < 0.5,
        "observation": rng.standard_normal((batch, 4)).astype(np.float32),
        "seed": rng.integers(0, 2**31, batch).astype(np.int32),
    }
    inputs["action_mask"][:, 1] = True
    inputs = {name: inputs[name] for name in bundle.input_specs(made.spec, signature)}
    expected = jax.jit(bundle.policy_function(made.agent, signature))(made.policy, inputs)
    outputs = predict(result.path, signature.value, inputs)
    assert set(outputs) == set(expected)
    np.testing.assert_array_equal(outputs["action"], expected["action"])
    np.testing.assert_allclose(outputs["log_prob"], expected["log_prob"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["value"], expected["value"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["multi-discrete", "box"])
def test_other_actions_export_too(name, tmp_path, monkeypatch):
    monkeypatch.setattr(export.parity, "of_saved_model", lambda *_, **__: 0.0)  # done below instead
    made = toys.bundled(SPECS[name])
    result = export.export(made, tmp_path, version=20, max_batch_size=1)
    golden = {n: x for n, x in made.golden.items() if "/output/" in n}
    assert parity.largest_difference("TensorFlow", golden, verify.run(result.path)) < 0.1
    inputs = {"observation": np.zeros((2, 4), np.float32)}
    if made.spec.has_mask:
        inputs["action_mask"] = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0]], bool)
    action = predict(result.path, "serving_default", inputs)["action"]
    # At zero the outputs are the bias 0, 1, ...: (2, 3) logits, or means in ±0.5 and ±∞
    expected = [[0, 1], [1, 0]] if made.spec.has_mask else [[0.0, 1.0]] * 2
    np.testing.assert_array_equal(action, expected)


def test_a_stock_model_server_refuses_stablehlo(made, result):
    with pytest.raises(UsageError, match=r"fails in a fresh process: .*XLA compilation disabled"):
        parity.of_saved_model(result.path, made, tuple(Signature), xla=False)


def test_the_manifest_says_what_a_server_must_know(manifest, made):
    assert (manifest["format"], manifest["format_version"]) == ("rljax-policy", 1)
    lifetime = datetime.date.fromisoformat(manifest["expires"]) - datetime.date.today()
    assert 178 <= lifetime.days <= 181
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["provenance"] == dataclasses.asdict(made.provenance)
    assert manifest["allowed_batch_sizes"] == [1, 2, 4, 6]
    assert manifest["signatures"]["sample"] == {
        "file": "sample.jaxexport",
        "inputs": {
            "action_mask": {"dtype": "bool", "shape": [-1, 3]},
            "observation": {"dtype": "float32", "shape": [-1, 4]},
            "seed": {"dtype": "int32", "shape": [-1]},
        },
        "outputs": {
            "action": {"dtype": "int32", "shape": [-1]},
            "log_prob": {"dtype": "float32", "shape": [-1]},
            "value": {"dtype": "float32", "shape": [-1]},
        },
        "input_order": ["action_mask", "observation", "seed"],
        "greedy": False,
    }
    assert manifest["signatures"]["serving_default"]["greedy"]
    leaves = [{"dtype": "float32", "shape": list(x.shape)} for x in jax.tree.leaves(made.policy)]
    assert manifest["params"] == {"file": "params.npz", "leaves": leaves}


def test_our_half_runs_from_the_files_alone(result, manifest, made):
    extra = result.path / EXTRA
    params = np.load(extra / manifest["params"]["file"])
    leaves = [params[str(i)] for i in range(len(manifest["params"]["leaves"]))]
    signature = manifest["signatures"]["serving_default"]
    function = jax.export.deserialize(bytearray((extra / signature["file"]).read_bytes())).call
    golden = np.load(extra / "golden.npz")
    inputs = {n: golden[f"serving_default/input/{n}"] for n in signature["input_order"]}
    outputs = jax.jit(function)(leaves, inputs)
    np.testing.assert_array_equal(outputs["action"], golden["serving_default/output/action"])
    document = json.loads((extra / "bundle.json").read_text())
    assert (document["agent"], document["config"]) == ("toy", {"hidden": 16})


def test_tampering_shows(result, manifest, tmp_path):
    assert export.digests(result.path) == manifest["sha256"]
    covered = {pathlib.Path(name).name for name in manifest["sha256"]}
    ours = {"params.npz", "golden.npz", "bundle.json", "sample.jaxexport"}
    assert covered >= ours | {"saved_model.pb", "variables.index", "serving_default.jaxexport"}
    copy = tmp_path / "copy"
    shutil.copytree(result.path, copy)
    content = bytearray((copy / EXTRA / "params.npz").read_bytes())
    content[200] ^= 1
    (copy / EXTRA / "params.npz").write_bytes(content)
    changed = export.digests(copy).items() ^ manifest["sha256"].items()
    assert {name for name, _ in changed} == {"assets.extra/rljax/params.npz"}


def test_a_warm_up_request_for_every_signature_and_batch_size(result, made):
    seen = []
    for record in tf.data.TFRecordDataset(str(result.path / WARMUP)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        signature = Signature(request.model_spec.signature_name)
        inputs = {name: tf.make_ndarray(x) for name, x in request.inputs.items()}
        assert set(inputs) == set(bundle.input_specs(made.spec, signature))
        (size,) = {len(x) for x in inputs.values()}
        seen.append((signature, size))
    assert sorted(seen, key=str) == sorted(
        ((s, n) for s in Signature for n in (1, 2, 4, 6)), key=str
    )


def test_batching_parameters_parse(result):
    # session_bundle_config.proto, whose stubs no package carries; numbers and types are its own.
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", syntax="proto3")
    file.message_type.add(name="Int64Value").field.add(
        name="value", number=1, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL
    )
    message = file.message_type.add(name="BatchingParameters")
    names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    for number, name in enumerate(names, start=1):
        message.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=".Int64Value",
            label=field.LABEL_OPTIONAL,
        )
    message.field.add(
        name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=field.LABEL_REPEATED
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    parameters = message_factory.GetMessageClass(pool.FindMessageTypeByName("BatchingParameters"))()
    text_format.Parse((result.path / "batching_params.pbtxt").read_text(), parameters)
    assert list(parameters.allowed_batch_sizes) == [1, 2, 4, 6]
    assert parameters.max_batch_size.value == 6  # TensorFlow Serving wants the last of them
    assert parameters.max_enqueued_batches.value > 10
    assert parameters.num_batch_threads.value >= 1


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (48, (1, 2, 4, 8, 16, 32, 48)), (3, (1, 2, 3))]
)
def test_allowed_batch_sizes_end_with_the_largest(largest, sizes):
    assert export.allowed_batch_sizes(largest) == sizes


def test_versions_count_up_and_are_never_overwritten(made, tmp_path, monkeypatch):
    monkeypatch.setattr(export.parity, "of_saved_model", lambda *_, **__: 0.0)  # saves a process
    (tmp_path / "9").mkdir()
    (tmp_path / "latest").mkdir()  # no version: not a number
    assert export.export(made, tmp_path).version == 10
    before = export.digests(tmp_path / "10")
    with pytest.raises(UsageError, match=r"version 10 exists in .*; the next free one is 11"):
        export.export(made, tmp_path, version=10)
    with pytest.raises(UsageError, match="numbered from 1"):
        export.export(made, tmp_path, version=0)
    assert export.digests(tmp_path / "10") == before
    assert names(tmp_path) == ["10", "9", "latest"]


def test_refuses_an_unwritable_target(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write to .*file"):
        export.export(made, tmp_path / "file" / "models")
    assert names(tmp_path) == ["file"]


def test_refuses_a_batch_of_nothing(made, tmp_path):
    with pytest.raises(UsageError, match="max_batch_size is 0; it must be at least 1"):
        export.export(made, tmp_path / "models", max_batch_size=0)
    assert not (tmp_path / "models").exists()


def test_what_does_not_reproduce_is_not_published(made, tmp_path):
    golden = made.golden | {"sample/output/value": made.golden["sample/output/value"] + 0.01}
    with pytest.raises(UsageError, match="JAX does not reproduce golden sample/output/value"):
        export.export(dataclasses.replace(made, golden=golden), tmp_path)
    assert names(tmp_path) == []


def test_refuses_what_tensorflow_cannot_read(tmp_path):
    def act(policy, carry, observation, key, greedy):
        return carry, jnp.arctanh(observation.features[:, :2] * 1e-4), {}

    made = toys.bundled(toys.BOX, toys.agent(toys.BOX)._replace(act=act))
    with pytest.raises(UsageError, match=r"uses chlo\.atanh, which TensorFlow .* elementary"):
        export.export(made, tmp_path)
    assert names(tmp_path) == []


def test_refuses_an_output_without_a_batch(tmp_path):
    agent = toys.agent(toys.BOX)

    def act(policy, carry, observation, key, greedy):
        carry, action, extras = agent.act(policy, carry, observation, key, greedy)
        return carry, action, {"scale": jnp.ones(2)} if greedy else extras

    with pytest.raises(UsageError, match=r"output scale .* first axis is not the batch"):
        export.export(toys.bundled(toys.BOX, agent._replace(act=act)), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([1.0, 100.002], "off by 0.002, allowed 0.001"),  # 1e-5 of 100
        ([1.0, np.nan], "off by nan"),
        ([1.0], r"float32 \[1\]; golden is float32 \[2\]"),
        (None, "TensorFlow does not give y"),
    ],
)
def test_differences_beyond_the_tolerance_are_refused(output, message):
    outputs = {} if output is None else {"y": np.float32(output)}
    with pytest.raises(UsageError, match=message):
        parity.largest_difference("TensorFlow", {"y": np.float32([1.0, 100.0])}, outputs)


def test_integers_must_be_equal_and_floats_nearly():
    golden = {"action": np.int32([3]), "y": np.float32([np.inf, 4.0])}
    near = {"action": np.int32([3]), "y": np.float32([np.inf, 4.00002])}
    difference = parity.largest_difference("JAX", golden, near)
    np.testing.assert_allclose(difference, 2e-5, rtol=0.05)  # allowed: 1e-5 · 4
    with pytest.raises(UsageError, match="golden action: off by 1, allowed 0"):
        parity.largest_difference("JAX", golden, near | {"action": np.int32([2])})
