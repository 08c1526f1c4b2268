"""A client for a served policy: one observation in, one decision out, always in time.

    with PolicyClient("localhost:8500", "cartpole", timeout_ms=20, safe_action=0) as client:
        decision = client.act(observation)

Speaks TensorFlow Serving's gRPC API, so the same code asks our server and the original; needs
neither TensorFlow nor JAX. Where a safe action is given, a request that fails or is late yields
that action, flagged, instead of an exception.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike

from serving import signatures, wire
from serving.signatures import ACTION_MASK, DEFAULT_SIGNATURE, Signature
from serving.status import Code, ServingError
from serving.versions import State, VersionStatus

Observation = ArrayLike | Mapping[str, ArrayLike]  # as a whole, or by its named parts


class Source(enum.Enum):
    """Where a decision came from."""

    MODEL = "model"
    SAFE_DEFAULT = "safe_default"


@dataclasses.dataclass(frozen=True)
class Decision:
    """An action, and what the policy said of it; the latter is None or empty for a safe default."""

    action: np.ndarray
    source: Source
    log_prob: float | None = None  # of the action: its propensity
    value: float | None = None  # of the observation, as the policy expects it
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # other outputs
    version: int | None = None  # of the model that answered
    error: str | None = None  # why the safe default had to step in


class PolicyClient:
    """One channel to one model; may be shared between threads."""

    def __init__(
        self,
        address: str,
        model_name: str,
        *,
        timeout_ms: float = 1000.0,
        safe_action: ArrayLike | None = None,
    ):
        """`timeout_ms` is the deadline of every call; `address` is host:port or unix:path."""
        if timeout_ms <= 0:
            raise ValueError(f"timeout_ms is {timeout_ms}; it must be positive")
        self._model_name = model_name
        self._timeout = timeout_ms / 1000
        self._safe_action = None if safe_action is None else np.asarray(safe_action)
        self._channel = grpc.insecure_channel(
            address,
            options=(
                ("grpc.max_receive_message_length", -1),
                # A fleet of clients in one process need not share a connection.
                ("grpc.use_local_subchannel_pool", 1),
            ),
        )
        self._predict = self._method(wire.PREDICTION_SERVICE, "Predict", wire.PredictResponse)
        self._get_metadata = self._method(
            wire.PREDICTION_SERVICE, "GetModelMetadata", wire.GetModelMetadataResponse
        )
        self._get_status = self._method(
            wire.MODEL_SERVICE, "GetModelStatus", wire.GetModelStatusResponse
        )

    def act(
        self,
        observation: Observation,
        action_mask: ArrayLike | None = None,
        *,
        version: int | None = None,
        signature: str = DEFAULT_SIGNATURE,
        seed: int | None = None,
    ) -> Decision:
        """Asks for one action.

        Args:
            observation: `[*observation_shape]`, without a batch axis, or its named parts.
            action_mask: bool `[num_actions]`, True where an action is allowed.
            version: of the model; by default the newest one served.
            signature: "serving_default" for the likeliest action, "sample" to draw one.
            seed: int32, for signatures that draw.

        Raises:
            ServingError: the call failed or was late, and no safe action was given.
        """
        request = wire.PredictRequest()
        self._fill_spec(request.model_spec, version)
        request.model_spec.signature_name = signature
        inputs: dict[str, ArrayLike] = {}
        if isinstance(observation, Mapping):
            inputs.update(observation)
        else:
            inputs["observation"] = observation
        if action_mask is not None:
            inputs[ACTION_MASK] = np.asarray(action_mask, bool)
        if seed is not None:
            inputs["seed"] = np.asarray(seed, np.int32)
        for name, value in inputs.items():
            array = np.asarray(value)[np.newaxis]
            if array.dtype == np.float64:
                array = array.astype(np.float32)
            wire.fill_tensor(request.inputs[name], array, as_content=True)
        try:
            response = self._call(self._predict, request)
            return _decision(response)
        except ServingError as error:
            if self._safe_action is None:
                raise
            return Decision(self._safe_action.copy(), Source.SAFE_DEFAULT, error=str(error))

    def metadata(self, version: int | None = None) -> dict[str, Signature]:
        """What the model takes and gives, by signature.

        Raises:
            ServingError: the call failed or was late.
        """
        request = wire.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill_spec(request.model_spec, version)
        response = self._call(self._get_metadata, request)
        definitions = wire.SignatureDefMap()
        response.metadata["signature_def"].Unpack(definitions)
        return {
            name: signatures.from_signature_def(definition)
            for name, definition in definitions.signature_def.items()
        }

    def status(self) -> list[VersionStatus]:
        """The state of every version that the server knows, newest first.

        Raises:
            ServingError: the call failed or was late.
        """
        request = wire.GetModelStatusRequest()
        self._fill_spec(request.model_spec, None)
        response = self._call(self._get_status, request)
        return [
            VersionStatus(
                entry.version,
                State(entry.state),
                Code(entry.status.error_code),
                entry.status.error_message,
            )
            for entry in response.model_version_status
        ]

    def close(self) -> None:
        """Closes the channel; calls under way fail."""
        self._channel.close()

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _method(self, service: str, name: str, response: Any) -> grpc.UnaryUnaryMultiCallable:
        return self._channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=wire.serialize,
            response_deserializer=response.FromString,
        )

    def _fill_spec(self, spec: wire.Message, version: int | None) -> None:
        spec.name = self._model_name
        if version is not None:
            spec.version.value = version

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: wire.Message) -> wire.Message:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise ServingError(Code(error.code().value[0]), error.details() or "") from error


def _decision(response: wire.Message) -> Decision:
    outputs = {name: wire.to_array(tensor)[0] for name, tensor in response.outputs.items()}
    if "action" not in outputs:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"the signature has no output named action, but {', '.join(sorted(outputs))}",
        )
    return Decision(
        action=outputs.pop("action"),
        source=Source.MODEL,
        log_prob=float(outputs.pop("log_prob")) if "log_prob" in outputs else None,
        value=float(outputs.pop("value")) if "value" in outputs else None,
        extras=outputs,
        version=response.model_spec.version.value,
    )
