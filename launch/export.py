"""Export a trained policy for TensorFlow Serving and for launch.serve.

    python -m launch.export --workdir=runs/cartpole --export_dir=models/cartpole

Writes models/cartpole/1, then 2, and so on: a SavedModel with its batching parameters and warm-up
requests, and the same policy as StableHLO for our own server. A version appears whole, after a
fresh process reproduced the policy's answers from it, or not at all. See docs/export.md.
"""

import contextlib
import enum
import functools
import os
import pathlib
from collections.abc import Iterator

from absl import flags as absl_flags

from launch import flags, process


class Format(enum.Enum):
    """What the SavedModel is made of; the names of `serving.export.Format`."""

    JAX2TF = "jax2tf"
    TF_OPS = "tf_ops"


FLAGS = absl_flags.FlagValues()
absl_flags.DEFINE_string("workdir", None, "Of launch.train.", flag_values=FLAGS)
absl_flags.DEFINE_string(
    "export_dir", None, "Base path of the model: the parent of its versions.", flag_values=FLAGS
)
absl_flags.DEFINE_integer(
    "version", None, "Number of the version; one more than the largest.", 1, flag_values=FLAGS
)
absl_flags.DEFINE_string(
    "step", "latest", "A checkpoint's step, or latest, or best.", flag_values=FLAGS
)
absl_flags.DEFINE_integer(
    "run",
    None,
    "Which of several runs that were trained in one program, from 0; default: 0.",
    0,
    flag_values=FLAGS,
)
absl_flags.DEFINE_enum_class(
    "format",
    Format.JAX2TF,
    Format,
    "jax2tf: any policy, needs a server with XLA compilation. tf_ops: plain operations for any "
    "server, the greedy signature alone.",
    flag_values=FLAGS,
)
absl_flags.DEFINE_integer(
    "max_batch_size", 64, "Largest batch that the server shall form.", 1, flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    """Exports; prints where, how exact and how large."""
    del argv
    for name in ("workdir", "export_dir"):
        if not FLAGS[name].value:
            raise flags.UsageError(f"--{name} is missing.")
    if FLAGS.step not in ("latest", "best") and not FLAGS.step.isdecimal():
        raise flags.UsageError(f"--step={FLAGS.step} must be a number, latest or best.")

    from launch import experiment as experiments
    from launch import results, trained
    from rljax import config as configs
    from serving import bundle

    workdir = pathlib.Path(FLAGS.workdir)
    run = trained.load(workdir, FLAGS.step, FLAGS.run)
    with _native_stderr_closed():
        from serving import export
    provenance = bundle.Provenance(
        workdir=str(workdir.absolute()),
        step=run.step,
        code_version=experiments.git_commit(),
        agent=run.experiment.agent,
        env=run.agent.spec.name,
        config_hash=configs.stable_hash(run.experiment.config),
    )
    made = bundle.make(run.agent, run.policy, run.experiment.config, provenance)
    result = export.export(
        made,
        FLAGS.export_dir,
        FLAGS.version,
        format=export.Format(FLAGS.format.value),
        max_batch_size=FLAGS.max_batch_size,
    )
    results.update(
        workdir,
        {
            "export/path": str(result.path),
            "export/parity_max_abs_diff": result.parity_max_abs_diff,
            "export/size_bytes": result.size_bytes,
        },
    )
    print(
        f"version {result.version} of step {run.step:,}: {result.path} ({result.size_bytes:,} "
        f"bytes, largest difference {result.parity_max_abs_diff:.1e}, {result.seconds:.1f} s)"
    )
    return 0


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """TensorFlow's C++ greets on stderr while it is imported, whatever its log level is."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


if __name__ == "__main__":
    process.prepare()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an accelerator would add its start and no speed
    flags.run(main, flags_parser=functools.partial(flags.parse_script, flag_values=FLAGS))
