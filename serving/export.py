"""A bundle as a version directory that TensorFlow Serving and our own server both load.

    <export_dir>/<version>/
      saved_model.pb variables/ fingerprint.pb    for TensorFlow Serving
      batching_params.pbtxt                       its --enable_per_model_batching_parameters
      assets.extra/tf_serving_warmup_requests     a request per signature and allowed batch size
      assets.extra/rljax/                         the same policy as StableHLO, for our server

Read `export`: it writes a temporary sibling, checks it in a fresh process, renames it into place.
Formats: DESIGN.md, "A bundle"; TensorFlow Serving's g3doc/{saved_model_warmup,serving_config}.md.
"""

import datetime
import enum
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow as tf
from jax.experimental import jax2tf

import rljax
from rljax import config
from rljax.config import UsageError
from serving import bundle as bundles
from serving import parity, tf_ops
from serving.bundle import EXTRA, WARMUP, Bundle, Signature, TensorSpec
from serving.verify import PredictionLog

FORMAT_VERSION = 1
LIFETIME = datetime.timedelta(days=180)  # StableHLO promises six months of backward compatibility
PLATFORMS = ("cpu", "cuda", "tpu")
BATCHING_PARAMETERS = """\
max_batch_size {{ value: {max_batch_size} }}
batch_timeout_micros {{ value: 0 }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 4 }}
{allowed_batch_sizes}
"""


class Format(enum.Enum):
    """What the SavedModel is made of."""

    JAX2TF = "jax2tf"  # StableHLO: any policy, but the server must compile with XLA
    TF_OPS = "tf_ops"  # plain TensorFlow operations: any server, greedy signature only


SIGNATURES = {  # in the SavedModel: the random bits of `sample` have no plain operations
    Format.JAX2TF: tuple(Signature),
    Format.TF_OPS: (Signature.SERVING_DEFAULT,),
}


class _Policy(tf.Module):
    """Holds the leaves, so that they are saved as variables."""

    def __init__(self, policy: Any):
        super().__init__()
        self.leaves = [tf.Variable(leaf, trainable=False) for leaf in jax.tree.leaves(policy)]


class Result(NamedTuple):
    """A finished export."""

    path: pathlib.Path
    version: int
    parity_max_abs_diff: float  # over all golden outputs, in TensorFlow and in JAX
    size_bytes: int  # of the whole version directory
    seconds: float


def export(
    bundle: Bundle,
    export_dir: str | os.PathLike[str],
    version: int | None = None,
    *,
    format: Format = Format.JAX2TF,
    max_batch_size: int = 64,
) -> Result:
    """Writes and checks `<export_dir>/<version>/`; it appears whole or not at all.

    Args:
        bundle: what to export.
        export_dir: the model's base path; made if missing.
        version: number of the new version; by default one more than the highest there.
        format: what the SavedModel is made of.
        max_batch_size: largest batch the server shall form; smaller allowed ones are powers of 2.

    Raises:
        UsageError: the target exists or cannot be written, the policy cannot be exported in this
            format, or the written model does not reproduce the golden outputs.
    """
    started = time.monotonic()
    if max_batch_size < 1:
        raise UsageError(f"max_batch_size is {max_batch_size}; it must be at least 1")
    parent = pathlib.Path(export_dir).absolute()
    tf.config.set_visible_devices([], "GPU")  # it would take all of the memory and use none
    temporary = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        version = _new_version(parent, version)
        temporary = parent / f".tmp-{version}-{os.getpid()}"
        temporary.mkdir()
        _write(temporary, bundle, format, allowed_batch_sizes(max_batch_size))
        difference = max(
            parity.of_stablehlo(temporary, bundle),
            parity.of_saved_model(
                temporary, bundle, SIGNATURES[format], xla=format is Format.JAX2TF
            ),
        )
        target = parent / str(version)
        temporary.rename(target)
    except tf_ops.UnsupportedError as error:
        raise UsageError(f"{error}; export with --format=jax2tf") from error
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(f"cannot write to {parent}: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Result(target, version, difference, size, time.monotonic() - started)


def allowed_batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Powers of two below `max_batch_size`, and itself: XLA compiles for these and no others."""
    powers = (2**i for i in range(max_batch_size.bit_length()))
    return (*(size for size in powers if size < max_batch_size), max_batch_size)


def digests(version_dir: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the files that make up the policy, by path within the version directory."""
    files = [version_dir / "saved_model.pb", *(version_dir / "variables").iterdir()]
    files += [path for path in (version_dir / EXTRA).iterdir() if path.name != "manifest.json"]
    return {
        path.relative_to(version_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def _new_version(parent: pathlib.Path, version: int | None) -> int:
    existing = {int(path.name) for path in parent.iterdir() if path.name.isdecimal()}
    if version is None:
        return max(existing, default=0) + 1
    if version < 1:
        raise UsageError(f"version is {version}; versions are numbered from 1")
    if version in existing:
        raise UsageError(
            f"version {version} exists in {parent}; the next free one is {max(existing) + 1}"
        )
    return version


def _write(
    directory: pathlib.Path, bundle: Bundle, format: Format, batch_sizes: tuple[int, ...]
) -> None:
    exports = {s: _stablehlo(bundle, s) for s in Signature}
    if format is Format.JAX2TF:
        _refuse_composites(exports)
    _write_saved_model(directory, bundle, format)

    extra = directory / EXTRA
    extra.mkdir(parents=True)
    leaves = jax.tree.leaves(bundle.policy)
    np.savez(
        extra / "params.npz", allow_pickle=False, **{str(i): leaf for i, leaf in enumerate(leaves)}
    )
    np.savez(extra / "golden.npz", allow_pickle=False, **bundle.golden)
    _write_json(
        extra / "bundle.json",
        {
            "agent": bundle.agent_name,
            "config": config.to_json(bundle.config),
            "spec": config.to_json(bundle.spec),
            "provenance": config.to_json(bundle.provenance),
        },
    )
    for signature, exported in exports.items():
        (extra / signature.blob).write_bytes(exported.serialize(vjp_order=0))
    signatures = {s.value: _description(bundle, s, exported) for s, exported in exports.items()}

    with tf.io.TFRecordWriter(str(directory / WARMUP)) as records:
        for signature in SIGNATURES[format]:
            for size in batch_sizes:
                records.write(_warmup_request(bundle, signature, size))
    sizes = "\n".join(f"allowed_batch_sizes: {size}" for size in batch_sizes)
    (directory / "batching_params.pbtxt").write_text(
        BATCHING_PARAMETERS.format(max_batch_size=batch_sizes[-1], allowed_batch_sizes=sizes)
    )
    manifest = _manifest(directory, bundle, format) | {
        "signatures": signatures,
        "allowed_batch_sizes": list(batch_sizes),
    }
    _write_json(extra / "manifest.json", manifest)


def _flat_function(bundle: Bundle, signature: Signature) -> Callable[..., dict[str, jax.Array]]:
    function = bundles.policy_function(bundle.agent, signature)
    structure = jax.tree.structure(bundle.policy)
    return lambda leaves, inputs: function(jax.tree.unflatten(structure, leaves), inputs)


def _stablehlo(bundle: Bundle, signature: Signature) -> jax.export.Exported:
    function = jax.jit(_flat_function(bundle, signature))
    specs = (_leaf_specs(bundle), _input_specs(bundle, signature))
    return jax.export.export(function, platforms=PLATFORMS)(*specs)


def _refuse_composites(exports: dict[Signature, jax.export.Exported]) -> None:
    """TensorFlow reads no composite operations of unknown batch size: arctanh, sinh and such."""
    for signature, exported in exports.items():
        names = set(re.findall(r'stablehlo\.composite "([^"]+)"', exported.mlir_module()))
        if names:
            raise UsageError(
                f"the policy's {signature.value} uses {', '.join(sorted(names))}, which TensorFlow "
                f"{tf.__version__} cannot run at every batch size: use elementary functions instead"
            )


def _description(
    bundle: Bundle, signature: Signature, exported: jax.export.Exported
) -> dict[str, Any]:
    inputs = bundles.input_specs(bundle.spec, signature)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "file": signature.blob,
        "inputs": {name: x._asdict() for name, x in inputs.items()},
        "outputs": {name: _output_spec(name, x)._asdict() for name, x in outputs.items()},
        "input_order": list(inputs),
        "greedy": signature is Signature.SERVING_DEFAULT,
    }


def _write_saved_model(directory: pathlib.Path, bundle: Bundle, format: Format) -> None:
    module = _Policy(bundle.policy)
    tf_functions = {}
    for signature in SIGNATURES[format]:
        function = _flat_function(bundle, signature)
        if format is Format.JAX2TF:
            converted = jax2tf.convert(
                function,
                polymorphic_shapes=[None, "(b, ...)"],
                with_gradient=False,
                native_serialization_platforms=PLATFORMS,
            )
        else:
            specs = (_leaf_specs(bundle), _input_specs(bundle, signature))
            converted = tf_ops.convert(function, *specs)
        specs = {
            name: tf.TensorSpec((None, *x.shape[1:]), x.dtype, name=name)
            for name, x in bundles.input_specs(bundle.spec, signature).items()
        }
        tf_functions[signature.value] = _tf_function(converted, module, specs)
    tf.saved_model.save(module, str(directory), signatures=tf_functions)


def _tf_function(converted: Callable[..., Any], module: _Policy, specs: dict[str, Any]) -> Any:
    def call(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return converted(list(module.leaves), inputs)

    # jit_compile would hand tf_ops to XLA, and jax2tf's own operation needs no help from it.
    function = tf.function(call, autograph=False, jit_compile=False)
    return function.get_concrete_function(**specs)


def _leaf_specs(bundle: Bundle) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(bundle.policy)]


def _input_specs(bundle: Bundle, signature: Signature) -> dict[str, jax.ShapeDtypeStruct]:
    (b,) = jax.export.symbolic_shape("b")
    return {
        name: jax.ShapeDtypeStruct((b, *x.shape[1:]), np.dtype(x.dtype))
        for name, x in bundles.input_specs(bundle.spec, signature).items()
    }


def _output_spec(name: str, output: Any) -> TensorSpec:
    if not output.shape or str(output.shape[0]) != "b":
        raise UsageError(f"output {name} is {output.str_short()}: its first axis is not the batch")
    return TensorSpec(str(output.dtype), (-1, *output.shape[1:]))


def _warmup_request(bundle: Bundle, signature: Signature, size: int) -> bytes:
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = bundle.provenance.env  # unused: the model is the one being loaded
    request.model_spec.signature_name = signature.value
    for name in bundles.input_specs(bundle.spec, signature):
        golden = bundle.golden[f"{signature.value}/input/{name}"]
        rows = golden[np.arange(size) % len(golden)]
        request.inputs[name].CopyFrom(tf.make_tensor_proto(rows))
    return log.SerializeToString()


def _manifest(directory: pathlib.Path, bundle: Bundle, format: Format) -> dict[str, Any]:
    created = datetime.datetime.now(datetime.UTC)
    leaves = jax.tree.leaves(bundle.policy)
    return {
        "format": "rljax-policy",
        "format_version": FORMAT_VERSION,
        "created": created.isoformat(timespec="seconds"),
        "expires": (created + LIFETIME).date().isoformat(),
        "versions": {
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "rljax": rljax.__version__,
            "tensorflow": tf.__version__,
        },
        "provenance": config.to_json(bundle.provenance),
        "saved_model": {
            "format": format.value,
            "signatures": [signature.value for signature in SIGNATURES[format]],
        },
        "params": {
            "file": "params.npz",
            "leaves": [{"dtype": str(x.dtype), "shape": list(x.shape)} for x in leaves],
        },
        "sha256": digests(directory),
    }


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
