"""The Predict pipeline, one for gRPC and REST: spec → version → signature → inputs → run → outputs.

Codes and texts are TensorFlow Serving's: model_servers/server_core.cc, servables/tensorflow/
predict_util.cc and tensorflow/cc/saved_model/util.cc.
"""

import asyncio
from collections.abc import Mapping

import numpy as np

from serving import signatures, wire
from serving.batching import Batcher
from serving.signatures import Servable
from serving.status import Code, ServingError, invalid
from serving.versions import Versions, servable_not_found


class Predictor:
    """Answers from the versions of one model, each request alone or joined by a batcher."""

    def __init__(self, versions: Versions, batcher: Batcher | None = None):
        self.versions = versions
        self._batcher = batcher

    def resolve(self, spec: wire.Message) -> tuple[int, Servable]:
        """The version that a ModelSpec asks for.

        Raises:
            ServingError: INVALID_ARGUMENT without a name or with a label, of which there are none
                yet; NOT_FOUND for an unknown model or version.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        version = spec.version.value if choice == "version" else None
        if spec.name != self.versions.name:
            raise servable_not_found(spec.name, version)
        return self.versions.get(version)

    async def predict(self, request: wire.Message) -> tuple[wire.Message, dict[str, np.ndarray]]:
        """Answers a PredictRequest: the ModelSpec of the answer, and its outputs.

        Raises:
            ServingError: the request is at fault, or the model failed.
        """
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        version, servable = self.resolve(request.model_spec)
        name = request.model_spec.signature_name or signatures.DEFAULT_SIGNATURE
        if name not in servable.signatures:
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        signature = servable.signatures[name]
        signatures.check_names(signature, set(request.inputs))
        arrays = {alias: _decode(alias, request.inputs[alias]) for alias in signature.inputs}
        wanted = signatures.check_filter(signature, list(request.output_filter))
        outputs = await self.run(servable, name, arrays)
        spec = model_spec(request.model_spec.name, version, name)
        return spec, {alias: outputs[alias] for alias in wanted}

    async def run(
        self, servable: Servable, signature: str, arrays: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Checks inputs whose names are right, and runs them.

        Raises:
            ServingError: INVALID_ARGUMENT for inputs that do not fit; whatever the model raises.
        """
        signatures.check_arrays(servable.signatures[signature], arrays)
        limit = servable.max_batch_size
        if limit is None:
            return servable.run(signature, arrays)
        if self._batcher is not None:
            return await self._batcher.run(servable, signature, arrays, limit)
        if (
            signatures.batch_size(arrays) > limit
        ):  # takes several runs: leave the event loop free for others
            return await asyncio.to_thread(servable.run, signature, arrays)
        return servable.run(signature, arrays)


def model_spec(name: str, version: int, signature_name: str = "") -> wire.Message:
    """The ModelSpec of an answer."""
    spec = wire.ModelSpec(name=name, signature_name=signature_name)
    spec.version.value = version
    return spec


def _decode(alias: str, tensor: wire.Message) -> np.ndarray:
    try:
        return wire.to_array(tensor)
    except ValueError as error:
        raise invalid(f"tensor parsing error: {alias}") from error
