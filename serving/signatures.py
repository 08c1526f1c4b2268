"""What a loaded model takes and gives, and the checks that requests pass before anything runs."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from serving import wire
from serving.status import invalid

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
ACTION_MASK = "action_mask"  # True where an action is allowed


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or output as TensorFlow's `TensorInfo`; -1 is a dimension of any size."""

    dtype: np.dtype
    shape: tuple[int, ...] | None  # None: of any rank
    name: str  # of the tensor in the graph, e.g. "serving_default_observation:0"

    def admits(self, array: np.ndarray) -> bool:
        """Whether the array has this type and shape."""
        if self.dtype != array.dtype:
            return False
        if self.shape is None:
            return True
        return len(self.shape) == array.ndim and all(
            expected in (-1, sent) for expected, sent in zip(self.shape, array.shape, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Signature:
    """A way of asking a model; keys are the names on the wire."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    method_name: str = PREDICT_METHOD


class Servable(Protocol):
    """One version of a model, loaded. `run` may be called from several threads at once."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The ways of asking it."""
        ...

    @property
    def max_batch_size(self) -> int | None:
        """Rows that one run takes; it cuts larger inputs into pieces.

        None: inputs and outputs need not share a batch axis, and requests must not be joined.
        """
        ...

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs checked inputs. Raises ServingError when the model fails."""
        ...


def check_names(signature: Signature, sent: set[str]) -> None:
    """Raises TensorFlow Serving's errors for missing and surplus inputs (predict_util.cc)."""
    required = set(signature.inputs)
    if len(sent) != len(required):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(required)} "
            f"len({_braces(sent)}) != len({_braces(required)}). "
            f"Sent extra: {_braces(sent - required)}. "
            f"Missing but required: {_braces(required - sent)}."
        )
    for name in sorted(required - sent):
        raise invalid(
            f"Signature input alias: {name}(feed name: {signature.inputs[name].name}) not found in "
            f"request and no default value provided. Inputs expected to be in the request "
            f"{_braces(sent)}, or default input alias set: "
        )


def check_filter(signature: Signature, names: list[str]) -> list[str]:
    """The outputs to return, all when none is named; raises TensorFlow Serving's errors."""
    for i, name in enumerate(names):
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in "
                f"the set {_braces(set(signature.outputs))}."
            )
        if name in names[:i]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return names or list(signature.outputs)


def check_arrays(signature: Signature, arrays: Mapping[str, np.ndarray]) -> None:
    """Checks type, shape, batch and values of inputs whose names are right.

    Raises:
        ServingError: INVALID_ARGUMENT naming the input, with the shape sent and the one expected.
    """
    for name, array in arrays.items():
        info = signature.inputs[name]
        if not info.admits(array):
            raise invalid(
                f'Input "{name}" does not match the signature: expected '
                f"{wire.type_name(info.dtype)} of shape {wire.shape_text(info.shape)}, got "
                f"{wire.type_name(array.dtype)} of shape {wire.shape_text(array.shape)}"
            )
        if array.size == 0:
            raise invalid(
                f'Input "{name}" is empty: its shape is {wire.shape_text(array.shape)}, expected '
                f"{wire.shape_text(info.shape)} with at least one element"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise invalid(
                f'Input "{name}" of shape {wire.shape_text(array.shape)} is not finite: '
                f"{array[tuple(where)]} at {wire.shape_text(where)}"
            )
        if name == ACTION_MASK and array.ndim > 1 and not array.any(axis=-1).all():
            row = int(np.argmin(array.any(axis=-1).ravel()))
            raise invalid(
                f'Input "{name}" of shape {wire.shape_text(array.shape)} forbids every action in '
                f"row {row}; each row must allow at least one"
            )
    shapes = {name: arrays[name].shape for name, i in signature.inputs.items() if _batched(i)}
    if len({shape[0] for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{name} {wire.shape_text(x)}" for name, x in sorted(shapes.items()))
        raise invalid(f"Input tensors must have equal 0th-dimension size: {listed}")


def batch_size(arrays: Mapping[str, np.ndarray]) -> int:
    """Rows in checked inputs that share a batch axis."""
    return len(next(iter(arrays.values())))


def signature_def(signature: Signature) -> wire.Message:
    """The signature as a `tensorflow.SignatureDef`."""
    message = wire.SignatureDef(method_name=signature.method_name)
    for infos, target in ((signature.inputs, message.inputs), (signature.outputs, message.outputs)):
        for name, info in infos.items():
            target[name].name = info.name
            target[name].dtype = wire.data_type(info.dtype)
            if info.shape is None:
                target[name].tensor_shape.unknown_rank = True
            else:
                for size in info.shape:
                    target[name].tensor_shape.dim.add(size=size)
    return message


def from_signature_def(message: wire.Message) -> Signature:
    """The signature that a `tensorflow.SignatureDef` describes.

    Raises:
        ValueError: it has a tensor of a type that is not served.
    """
    return Signature(_from_map(message.inputs), _from_map(message.outputs), message.method_name)


def _from_map(infos: Mapping[str, wire.Message]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(
            wire.numpy_type(info.dtype),
            None
            if info.tensor_shape.unknown_rank
            else tuple(dim.size for dim in info.tensor_shape.dim),
            info.name,
        )
        for name, info in sorted(infos.items())
    }


def _batched(info: TensorInfo) -> bool:
    return bool(info.shape) and info.shape[0] == -1


def _braces(names: set[str]) -> str:
    return f"{{{','.join(sorted(names))}}}"
