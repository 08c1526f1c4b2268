"""Does what was written answer as the policy does? Both halves of an export, on golden inputs."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax
import numpy as np

from rljax.config import UsageError
from serving import bundle as bundles
from serving.bundle import EXTRA, Bundle, Signature

TOLERANCE = 1e-5  # largest difference from golden outputs, relative to the largest of each (or 1)
_VERIFY = pathlib.Path(__file__).with_name("verify.py")


def of_stablehlo(version_dir: pathlib.Path, bundle: Bundle) -> float:
    """Reads StableHLO and parameters back as our server does; the largest difference.

    Raises:
        UsageError: outputs differ from the golden ones by more than `TOLERANCE`.
    """
    with np.load(version_dir / EXTRA / "params.npz") as params:
        leaves = [params[str(i)] for i in range(len(params.files))]
    outputs = {}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for signature in Signature:
            blob = (version_dir / EXTRA / signature.blob).read_bytes()
            names = bundles.input_specs(bundle.spec, signature)
            inputs = {name: bundle.golden[f"{signature.value}/input/{name}"] for name in names}
            results = jax.jit(jax.export.deserialize(bytearray(blob)).call)(leaves, inputs)
            outputs |= {f"{signature.value}/output/{k}": np.asarray(x) for k, x in results.items()}
    return largest_difference("JAX", _golden_outputs(bundle, tuple(Signature)), outputs)


def of_saved_model(
    version_dir: pathlib.Path, bundle: Bundle, signatures: Sequence[Signature], *, xla: bool
) -> float:
    """Runs the SavedModel as TensorFlow Serving would, in a fresh process; the largest difference.

    Args:
        version_dir: the written version.
        bundle: what it was written from.
        signatures: those that it holds.
        xla: whether the process may compile with XLA; a stock model server does not.

    Raises:
        UsageError: it fails, or outputs differ from the golden ones by more than `TOLERANCE`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        outputs = pathlib.Path(scratch, "outputs.npz")
        flags = [] if xla else ["--xla=off"]
        process = subprocess.run(
            [sys.executable, "-P", _VERIFY, version_dir, outputs, *flags],  # -P: not our modules
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            reason = process.stderr.strip().rpartition("\n")[2] or f"exit {process.returncode}"
            raise UsageError(f"the SavedModel fails in a fresh process: {reason}")
        with np.load(outputs) as results:
            golden = _golden_outputs(bundle, signatures)
            return largest_difference("TensorFlow", golden, dict(results))


def largest_difference(
    where: str, golden: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> float:
    """Largest absolute difference between arrays of the same names; integers must be equal.

    Raises:
        UsageError: an array is missing, of another type or shape, or differs by more than
            `TOLERANCE` of the golden array's largest magnitude, or of 1 if that is less.
    """
    largest = 0.0
    for name, expected in golden.items():
        output = outputs.get(name)
        if output is None:
            raise UsageError(f"{where} does not give {name}")
        if (output.dtype, output.shape) != (expected.dtype, expected.shape):
            raise UsageError(
                f"{where} gives {name} as {output.dtype} {list(output.shape)}; "
                f"golden is {expected.dtype} {list(expected.shape)}"
            )
        differing = output != expected  # infinities that agree would give NaN when subtracted
        difference = np.abs(output[differing].astype(np.float64) - expected[differing])
        worst = float(np.max(difference, initial=0.0))
        exact = not np.issubdtype(expected.dtype, np.floating)
        scale = np.max(np.abs(expected), initial=1.0, where=np.isfinite(expected))
        bound = 0.0 if exact else TOLERANCE * float(scale)
        if not worst <= bound:  # so that NaN is refused too
            raise UsageError(
                f"{where} does not reproduce golden {name}: off by {worst:.3g}, allowed {bound:.3g}"
            )
        largest = max(largest, worst)
    return largest


def _golden_outputs(bundle: Bundle, signatures: Sequence[Signature]) -> dict[str, np.ndarray]:
    prefixes = tuple(f"{signature.value}/output/" for signature in signatures)
    return {name: x for name, x in bundle.golden.items() if name.startswith(prefixes)}
