"""A SavedModel that is not ours, run by TensorFlow, which is imported only when there is one."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.signatures import Signature, TensorInfo
from serving.status import Code, ServingError


class SavedModelServable:
    """Any SavedModel. Requests are never joined or cut: its tensors need not share a batch axis."""

    max_batch_size = None

    def __init__(self, model: Any):
        """`model` is what `tf.saved_model.load` returns."""
        self._model = model  # its functions hold its variables by weak references only
        self.signatures = {
            name: Signature(
                _infos(function.structured_input_signature[1]), _infos(function.structured_outputs)
            )
            for name, function in model.signatures.items()
        }

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs checked inputs."""
        import tensorflow as tf

        try:
            function = self._model.signatures[signature]
            outputs = function(**{name: tf.constant(x) for name, x in inputs.items()})
        except tf.errors.OpError as error:
            raise ServingError(Code(error.error_code), str(error.message)) from error
        return {name: np.asarray(x) for name, x in outputs.items()}


def load(directory: pathlib.Path) -> SavedModelServable:
    """Loads a SavedModel with the tag "serve".

    Raises:
        ServingError: FAILED_PRECONDITION without TensorFlow; NOT_FOUND without a SavedModel;
            TensorFlow's own code when it cannot load it.
    """
    if not (directory / "saved_model.pb").exists():
        raise ServingError(
            Code.NOT_FOUND,
            f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
            f"{directory}. Check that the directory exists and that you have the right "
            "permissions for accessing it.",
        )
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"{directory} is no export of ours, and running it needs TensorFlow: "
            "pip install 'rljax[serving]'",
        ) from error
    try:
        model = tf.saved_model.load(str(directory), tags=["serve"])
    except (tf.errors.OpError, OSError, ValueError, KeyError) as error:
        raise ServingError(Code.DATA_LOSS, f"{directory} cannot be loaded: {error}") from error
    return SavedModelServable(model)


def _infos(specs: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(
            np.dtype(spec.dtype.as_numpy_dtype),
            None
            if spec.shape.rank is None
            else tuple(-1 if size is None else size for size in spec.shape),
            f"{spec.name or name}:0",
        )
        for name, spec in sorted(specs.items())
    }
