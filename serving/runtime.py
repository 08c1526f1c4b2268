"""One of our version directories, run by JAX: the StableHLO and parameters under assets.extra.

Loading checks hashes, compiles every allowed batch size ahead of time, and runs the golden inputs:
a version that does not give its golden outputs here is refused, and no request pays for a compile.
The layout is written by `serving/export.py`.
"""

import dataclasses
import datetime
import hashlib
import json
import logging
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from serving.signatures import Signature, TensorInfo, batch_size, check_arrays
from serving.status import Code, ServingError

EXTRA = pathlib.Path("assets.extra", "rljax")
MANIFEST = EXTRA / "manifest.json"
GOLDEN = EXTRA / "golden.npz"
FORMAT = "rljax-policy"
FORMAT_VERSION = 1
EXPIRY_NOTICE = datetime.timedelta(days=30)
# Largest difference from the golden outputs, relative to the largest of each. The exporter allows
# 1e-5 on its own machine; an accelerator's reduced-precision products need more room.
GOLDEN_TOLERANCE = 1e-3

# What jax.export raises at bytes that are no serialized program.
_BROKEN_BLOB = (struct.error, AttributeError, AssertionError)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class JaxServable:
    """A loaded policy: an executable per signature and allowed batch size, parameters on device."""

    signatures: Mapping[str, Signature]
    max_batch_size: int
    _leaves: list[jax.Array]
    _executables: Mapping[str, Mapping[int, jax.stages.Compiled]]  # signature -> batch size ->

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs checked inputs `[B, ...]` of any B; every row is computed by itself.

        B is padded to the next allowed size by repeating the last row; more rows than the largest
        size are run in pieces of that size, so that nothing is ever compiled here.
        """
        rows = batch_size(inputs)
        if rows <= self.max_batch_size:
            return self._run_piece(signature, inputs, rows)
        pieces = [
            self._run_piece(
                signature,
                {name: x[start : start + self.max_batch_size] for name, x in inputs.items()},
                min(self.max_batch_size, rows - start),
            )
            for start in range(0, rows, self.max_batch_size)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _run_piece(
        self, signature: str, inputs: Mapping[str, np.ndarray], rows: int
    ) -> dict[str, np.ndarray]:
        executables = self._executables[signature]
        size = rows if rows in executables else min(s for s in executables if s > rows)
        if size != rows:
            index = np.minimum(np.arange(size), rows - 1)
            inputs = {name: x[index] for name, x in inputs.items()}
        try:
            outputs = executables[size](self._leaves, dict(inputs))
            arrays = {name: np.asarray(x) for name, x in outputs.items()}
        except jax.errors.JaxRuntimeError as error:
            raise ServingError(Code.INTERNAL, str(error)) from error
        return {name: x[:rows] for name, x in arrays.items()} if size != rows else arrays


def load(directory: pathlib.Path) -> JaxServable:
    """Loads a version directory that has our manifest.

    Raises:
        ServingError: the manifest is broken or of another format (FAILED_PRECONDITION); a file is
            missing, changed or does not fit the manifest, or the golden outputs are not reproduced
            (DATA_LOSS).
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise _broken(f"{MANIFEST} cannot be read: {error}") from error
    try:
        if (manifest["format"], manifest["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise _broken(
                f"{MANIFEST} is of format {manifest['format']} {manifest['format_version']}; this "
                f"server reads {FORMAT} {FORMAT_VERSION}"
            )
        signatures = {n: _signature(n, entry) for n, entry in manifest["signatures"].items()}
        sizes = sorted(int(size) for size in manifest["allowed_batch_sizes"])
        files = {name: EXTRA / entry["file"] for name, entry in manifest["signatures"].items()}
        params_file = EXTRA / manifest["params"]["file"]
        leaves = [
            jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))
            for leaf in manifest["params"]["leaves"]
        ]
        hashes = dict(manifest["sha256"])
        expires = datetime.date.fromisoformat(manifest["expires"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(f"{MANIFEST} is broken: {type(error).__name__}: {error}") from error
    if not signatures or not sizes or sizes[0] < 1:
        raise _broken(f"{MANIFEST} names no signature, or an allowed batch size below 1")

    for path in (params_file, GOLDEN, *files.values()):
        _check_hash(directory, path, hashes)
    _warn_of_expiry(directory, expires)
    params = _read_params(directory / params_file, leaves)
    executables = {
        name: _compile(directory / path, leaves, signatures[name], sizes)
        for name, path in files.items()
    }
    servable = JaxServable(signatures, sizes[-1], params, executables)
    _check_golden(directory / GOLDEN, servable)
    return servable


def _broken(message: str) -> ServingError:
    return ServingError(Code.FAILED_PRECONDITION, message)


def _lost(message: str) -> ServingError:
    return ServingError(Code.DATA_LOSS, message)


def _signature(name: str, entry: Mapping[str, Any]) -> Signature:
    """Tensors get the names that TensorFlow gives to an exported function's."""
    for kind in ("inputs", "outputs"):
        for tensor, info in entry[kind].items():
            if not info["shape"] or info["shape"][0] != -1 or -1 in info["shape"][1:]:
                raise ValueError(
                    f"{tensor} of {name} has shape {info['shape']}; the first dimension, and no "
                    "other, must be -1"
                )
    inputs = {
        tensor: TensorInfo(np.dtype(info["dtype"]), tuple(info["shape"]), f"{name}_{tensor}:0")
        for tensor, info in sorted(entry["inputs"].items())
    }
    outputs = {
        tensor: TensorInfo(
            np.dtype(info["dtype"]), tuple(info["shape"]), f"StatefulPartitionedCall:{i}"
        )
        for i, (tensor, info) in enumerate(sorted(entry["outputs"].items()))
    }
    if not inputs or not outputs:
        raise ValueError(f"{name} has no inputs or no outputs")
    return Signature(inputs, outputs)


def _check_hash(directory: pathlib.Path, path: pathlib.Path, hashes: Mapping[str, str]) -> None:
    try:
        digest = hashlib.sha256((directory / path).read_bytes()).hexdigest()
    except OSError as error:
        raise _lost(f"{path} cannot be read: {error.strerror}") from error
    if hashes.get(path.as_posix()) != digest:
        raise _lost(f"{path} is not the file that was exported: its SHA-256 is {digest}")


def _warn_of_expiry(directory: pathlib.Path, expires: datetime.date) -> None:
    left = expires - datetime.datetime.now(datetime.UTC).date()
    if left < EXPIRY_NOTICE:
        _log.warning(
            "%s: its StableHLO is guaranteed to load until %s (%d days from now); export it again",
            directory,
            expires,
            left.days,
        )


def _read_params(path: pathlib.Path, leaves: list[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    params = _read_npz(path)
    arrays = [params[str(i)] for i in range(len(params)) if str(i) in params]
    given = [(x.shape, x.dtype) for x in arrays]
    expected = [(x.shape, x.dtype) for x in leaves]
    if given != expected:
        raise _lost(f"{path.name} does not hold the arrays that the manifest lists")
    return jax.device_put(arrays)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise _lost(f"{path.name} cannot be read: {error}") from error


def _compile(
    path: pathlib.Path, leaves: list[jax.ShapeDtypeStruct], signature: Signature, sizes: list[int]
) -> dict[int, jax.stages.Compiled]:
    try:
        function = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
        return {
            size: function.lower(
                leaves,
                {
                    name: jax.ShapeDtypeStruct((size, *(info.shape or ())[1:]), info.dtype)
                    for name, info in signature.inputs.items()
                },
            ).compile()
            for size in sizes
        }
    except (*_BROKEN_BLOB, ValueError, TypeError, jax.errors.JaxRuntimeError) as error:
        raise _broken(f"{path.name} does not compile here: {error}") from error


def _check_golden(path: pathlib.Path, servable: JaxServable) -> None:
    arrays = _read_npz(path)
    for signature, definition in servable.signatures.items():
        try:
            inputs = {name: arrays[f"{signature}/input/{name}"] for name in definition.inputs}
            expected = {name: arrays[f"{signature}/output/{name}"] for name in definition.outputs}
        except KeyError as error:
            raise _lost(f"{path.name} has no array {error}") from error
        check_arrays(definition, inputs)
        outputs = servable.run(signature, inputs)
        if outputs.keys() != expected.keys():
            raise _lost(f"{signature} gives other outputs than the manifest lists")
        for name, output in outputs.items():
            _compare(f"{signature}/output/{name}", output, expected[name])


def _compare(name: str, output: np.ndarray, expected: np.ndarray) -> None:
    if (output.shape, output.dtype) != (expected.shape, expected.dtype):
        raise _lost(
            f"golden {name} is {expected.dtype} {expected.shape}, and here it comes out as "
            f"{output.dtype} {output.shape}"
        )
    differing = output != expected  # equal infinities differ by nothing; subtracting gives NaN
    difference = np.abs(output[differing] - expected[differing].astype(np.float64))
    bound = 0.0
    if output.dtype.kind == "f":
        finite = np.abs(expected[np.isfinite(expected)])
        bound = GOLDEN_TOLERANCE * max(1.0, float(np.max(finite, initial=0.0)))
    if not np.all(difference <= bound):  # False for NaN too
        raise _lost(
            f"golden {name} is not reproduced on {jax.default_backend()}: off by "
            f"{np.max(difference):.3g}, allowed {bound:.3g}"
        )
