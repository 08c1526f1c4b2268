"""Version directories as the exporter lays them out, made by hand; and servers as processes."""

import dataclasses
import datetime
import hashlib
import io
import json
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import grpc
import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = (1, 2, 4, 8)  # allowed batch sizes: few, as each costs a compile
START_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Model:
    """`function(leaves, inputs) -> outputs`, with a row of every input to trace it by."""

    function: Callable
    leaves: list[np.ndarray]
    inputs: dict[str, np.ndarray]  # golden inputs [N, ...]


def _half_plus_two(leaves, inputs):
    return {"y": inputs["x"] * leaves[0] + leaves[1]}


def _policy(leaves, inputs):
    hidden = jnp.tanh(inputs["observation"] @ leaves[0])
    logits = jnp.where(inputs["action_mask"], hidden @ leaves[1], -1e9)
    action = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=-1)[:, 0]
    return {"action": action, "log_prob": log_prob, "value": hidden.sum(axis=-1)}


def half_plus_two(offset: float = 2.0) -> Model:
    """TensorFlow Serving's own test model: x/2 + 2."""
    x = np.array([1.0, 2.0, 5.0], np.float32)
    return Model(_half_plus_two, [np.float32(0.5), np.float32(offset)], {"x": x})


def policy() -> Model:
    """A masked policy over three actions: two inputs, three outputs."""
    rng = np.random.default_rng(0)
    return Model(
        _policy,
        [rng.normal(size=shape).astype(np.float32) for shape in ((4, 16), (16, 3))],
        {
            "observation": rng.normal(size=(5, 4)).astype(np.float32),
            "action_mask": np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1]], bool),
        },
    )


def write_version(base: pathlib.Path, version: int, model: Model, **manifest: object) -> None:
    """Writes BASE/<version> with one signature, as serving/export.py does; whole or not at all."""
    directory = base / f".tmp-{version}"
    extra = directory / "assets.extra" / "rljax"
    extra.mkdir(parents=True)
    (b,) = jax.export.symbolic_shape("b")
    specs = {
        name: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for name, x in model.inputs.items()
    }
    exported = jax.export.export(jax.jit(model.function))(model.leaves, specs)
    outputs = {
        name: np.asarray(x) for name, x in model.function(model.leaves, model.inputs).items()
    }
    files = {
        "serving_default.jaxexport": bytes(exported.serialize()),
        "params.npz": _npz({str(i): leaf for i, leaf in enumerate(model.leaves)}),
        "golden.npz": _npz(
            {f"serving_default/input/{name}": x for name, x in model.inputs.items()}
            | {f"serving_default/output/{name}": x for name, x in outputs.items()}
        ),
    }
    for name, content in files.items():
        (extra / name).write_bytes(content)
    document = {
        "format": "rljax-policy",
        "format_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "expires": (datetime.date.today() + datetime.timedelta(days=180)).isoformat(),
        "versions": {"jax": jax.__version__},
        "provenance": {},
        "signatures": {
            "serving_default": {
                "file": "serving_default.jaxexport",
                "inputs": {name: _info(x) for name, x in model.inputs.items()},
                "outputs": {name: _info(x) for name, x in outputs.items()},
                "input_order": sorted(model.inputs),
                "greedy": True,
            }
        },
        "params": {
            "file": "params.npz",
            "leaves": [{"dtype": str(x.dtype), "shape": list(x.shape)} for x in model.leaves],
        },
        "allowed_batch_sizes": list(SIZES),
        "sha256": {
            f"assets.extra/rljax/{name}": hashlib.sha256(content).hexdigest()
            for name, content in files.items()
        },
    } | manifest
    (extra / "manifest.json").write_text(json.dumps(document))
    directory.rename(base / str(version))


def _info(array: np.ndarray) -> dict[str, object]:
    return {"dtype": str(array.dtype), "shape": [-1, *array.shape[1:]]}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Server:
    """`python -m launch.serve` as a process of its own."""

    def __init__(self, base: pathlib.Path, name: str, *flags: str, rest: bool = False):
        self.port = free_port()
        self.rest_port = free_port() if rest else 0
        self.address = f"localhost:{self.port}"
        self.rest_url = f"http://localhost:{self.rest_port}"
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.serve"),
                f"--model_name={name}",
                f"--model_base_path={base}",
                f"--port={self.port}",
                f"--rest_api_port={self.rest_port}",
                "--file_system_poll_wait_seconds=0.1",
                *flags,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        killer = threading.Timer(START_SECONDS, self.process.kill)  # so that readline ends
        killer.start()
        self.ready_line = self.process.stdout.readline()
        killer.cancel()
        self.channel = grpc.insecure_channel(self.address)

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self.errors.append(line)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)

    def close(self) -> None:
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
