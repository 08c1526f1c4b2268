r"""Serves one model over TensorFlow Serving's gRPC and REST APIs.

    python -m launch.serve --model_name=cartpole --model_base_path=$PWD/models/cartpole \
        --port=8500 --rest_api_port=8501

The base path holds numbered versions, as `launch.export` writes them; the largest one is served,
and new ones are picked up while running. SIGTERM or Ctrl-C lets requests in flight finish. The
flags are those of `tensorflow_model_server` of the same names.
"""

import asyncio
import functools
import logging
import os
import pathlib
from typing import Any

from absl import flags as absl_flags

from launch import flags, process

FLAGS = absl_flags.FlagValues()
absl_flags.DEFINE_integer(
    "port", 8500, "TCP port of the gRPC API; 0 for none.", 0, 65535, flag_values=FLAGS
)
absl_flags.DEFINE_string(
    "grpc_socket_path", "", "Unix socket on which gRPC listens too.", flag_values=FLAGS
)
absl_flags.DEFINE_integer(
    "rest_api_port", 0, "TCP port of the REST API; 0 for none.", 0, 65535, flag_values=FLAGS
)
absl_flags.DEFINE_integer(
    "rest_api_timeout_in_ms", 30_000, "Longest time a REST call may take.", 1, flag_values=FLAGS
)
absl_flags.DEFINE_string("model_name", "default", "Name that requests ask for.", flag_values=FLAGS)
absl_flags.DEFINE_string(
    "model_base_path", "", "Absolute path of the numbered versions; required.", flag_values=FLAGS
)
absl_flags.DEFINE_float(
    "file_system_poll_wait_seconds",
    1.0,
    "Seconds between looks for new versions; 0 to look once, at the start.",
    0.0,
    flag_values=FLAGS,
)
absl_flags.DEFINE_boolean(
    "enable_batching",
    False,
    "Join requests that arrive together, up to the version's largest allowed batch size, which "
    "then also bounds a single request.",
    flag_values=FLAGS,
)
absl_flags.DEFINE_boolean(
    "enable_serialization_as_tensor_content",
    False,
    "Answer with tensor_content, raw bytes, in place of typed values.",
    flag_values=FLAGS,
)
absl_flags.DEFINE_boolean(
    "enable_grpc_healthcheck_service", False, "Answer grpc.health.v1.Health.", flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    """Serves until a signal."""
    del argv
    base_path = pathlib.Path(FLAGS.model_base_path)
    if not FLAGS.model_base_path:
        raise flags.UsageError("--model_base_path is missing: the parent of the versions.")
    if not base_path.is_absolute():
        raise flags.UsageError(
            f"Expected model {FLAGS.model_name} to have an absolute path or URI; got "
            f"base_path()={base_path}"
        )
    if not FLAGS.model_name:
        raise flags.UsageError("--model_name is empty: requests must be able to name the model.")
    if not (FLAGS.port or FLAGS.rest_api_port or FLAGS.grpc_socket_path):
        raise flags.UsageError(
            "nothing to listen on: give --port, --rest_api_port or --grpc_socket_path."
        )
    logging.getLogger("serving").setLevel(logging.INFO)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it reports a taken port in a dozen lines

    from serving.model_server import ModelServer, ServerConfig

    settings: dict[str, Any] = {name: FLAGS[name].value for name in FLAGS}
    settings["model_base_path"] = base_path
    server = ModelServer(ServerConfig(**settings))
    asyncio.run(server.run(functools.partial(print, flush=True)))
    return 0


if __name__ == "__main__":
    process.prepare()
    flags.run(main, flags_parser=functools.partial(flags.parse_script, flag_values=FLAGS))
