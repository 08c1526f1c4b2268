"""Runs an export's golden inputs and warm-up records as TensorFlow Serving would; without JAX.

    python serving/verify.py VERSION_DIR OUTPUTS.npz [--xla=off]

A process of its own, so that nothing the exporter has in memory can help: the SavedModel goes
through TensorFlow's C++ loader and `Session.run` on the signature's tensor names, which is what
`tensorflow_model_server` does (tensorflow_serving/servables/tensorflow/predict_util.cc). With
`--xla=off` XLA compilation is disabled through the function that the server calls at its start
unless told `--xla_cpu_compilation_enabled=true` (model_servers/main.cc). OUTPUTS.npz receives
"<signature>/output/<name>".
"""

import ctypes
import os
import pathlib
import sys
from typing import Any, cast

import numpy as np
import tensorflow as tf
from google.protobuf import message_factory
from tensorflow_serving.apis import prediction_log_pb2

WARMUP = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
GOLDEN = pathlib.Path("assets.extra", "rljax", "golden.npz")
PredictionLog: Any = message_factory.GetMessageClass(
    prediction_log_pb2.DESCRIPTOR.message_types_by_name["PredictionLog"]
)


def disable_xla() -> None:
    """Makes every later XLA compilation in this process fail, as in a stock model server."""
    library = os.path.join(os.path.dirname(tf.__file__), "libtensorflow_cc.so.2")
    ctypes.CDLL(library)._ZN10tensorflow21DisableXlaCompilationEv()


def run(version_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Outputs of every signature on its golden inputs; the warm-up records must run too."""
    golden = np.load(version_dir / GOLDEN)
    outputs = {}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        model = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(version_dir))

        def predict(signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            definition = model.signature_def[signature]
            fetches = {name: info.name for name, info in definition.outputs.items()}
            feeds = {info.name: inputs[name] for name, info in definition.inputs.items()}
            return session.run(fetches, feeds)

        for signature in sorted({name.split("/")[0] for name in golden.files}):
            if signature not in model.signature_def:
                continue
            prefix = f"{signature}/input/"
            inputs = {n.removeprefix(prefix): golden[n] for n in golden.files if prefix in n}
            results = predict(signature, inputs)
            outputs |= {f"{signature}/output/{name}": x for name, x in results.items()}
        for record in tf.compat.v1.io.tf_record_iterator(str(version_dir / WARMUP)):
            request = PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            predict(request.model_spec.signature_name, inputs)
    return outputs


if __name__ == "__main__":
    cast(Any, sys.modules).update(jax=None, jaxlib=None)  # a SavedModel that needs them fails
    if "--xla=off" in sys.argv[3:]:
        disable_xla()
    try:
        results = run(pathlib.Path(sys.argv[1]))
    except tf.errors.OpError as error:
        lines = error.message.removeprefix("Graph execution error:").strip().splitlines()
        sys.exit(f"{error.error_code} {lines[0]}")
    np.savez(sys.argv[2], allow_pickle=False, **results)
