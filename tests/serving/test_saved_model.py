"""SavedModels that are not ours: TensorFlow runs them."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from serving import model_server
from serving.signatures import TensorInfo
from serving.status import Code, ServingError
from tests.serving.servers import ROOT


class HalfPlusTwo(tf.Module):
    def __init__(self):
        self.half = tf.Variable(0.5)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x):
        return {"y": x * self.half + 2.0}

    @tf.function(input_signature=[tf.TensorSpec([2], tf.string, name="words")])
    def join(self, words):
        return {"joined": tf.strings.reduce_join(words), "first": tf.gather(words, 0)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="i")])
    def fail(self, i):
        with tf.control_dependencies([tf.debugging.assert_less(i, 3)]):
            return {"i": tf.identity(i)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("half") / "1"
    module = HalfPlusTwo()
    signatures = {
        "serving_default": module.predict,
        "join": module.join,
        "fail": module.fail,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


@pytest.fixture(scope="module")
def servable(directory):
    return model_server.load(directory)


def test_runs_half_plus_two(servable):
    outputs = servable.run("serving_default", {"x": np.array([1, 2, 5], np.float32)})
    np.testing.assert_array_equal(outputs["y"], [2.5, 3.0, 4.5])
    assert servable.max_batch_size is None


def test_knows_its_signatures(servable):
    inputs = servable.signatures["serving_default"].inputs
    assert inputs["x"] == TensorInfo(np.dtype("float32"), (-1,), "x:0")
    assert servable.signatures["join"].inputs["words"].dtype == object


def test_runs_strings_and_scalars(servable):
    outputs = servable.run("join", {"words": np.array([b"ab", b"c"], object)})
    assert outputs["joined"].item() == b"abc"
    assert outputs["first"].shape == ()


def test_a_failing_model_keeps_its_code(servable):
    with pytest.raises(ServingError) as error:
        servable.run("fail", {"i": np.array([5], np.int32)})
    assert error.value.code is Code.INVALID_ARGUMENT


def test_a_directory_with_nothing_to_serve(tmp_path):
    with pytest.raises(ServingError, match="Could not find SavedModel") as error:
        model_server.load(tmp_path)
    assert error.value.code is Code.NOT_FOUND


def test_a_broken_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"broken")
    with pytest.raises(ServingError, match="cannot be loaded"):
        model_server.load(tmp_path)


def test_without_tensorflow_the_extra_is_named(directory):
    code = (
        "import sys, pathlib; sys.modules['tensorflow'] = None\n"
        "from serving import model_server; model_server.load(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, directory]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "pip install 'rljax[serving]'" in result.stderr.splitlines()[-1]
