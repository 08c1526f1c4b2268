"""Put datasets into one folder that is read from disk, row by row, when they are learned from.

    python -m launch.convert --dataset=data/large --out=data/large_rows
    python -m launch.convert --dataset='logs/day-*.parquet' --out=data/days
    python -m launch.train --agent=iql --dataset=data/days --workdir=runs/days

For what is larger than memory. --dataset is anything that launch.train takes, or a quoted pattern
of such files, which are joined in the order of their names; no episode may go on in another file.
Of Minari's layout some episodes are in memory at a time, of other formats one file.
"""

import functools
import glob
import pathlib

from absl import flags as absl_flags

from launch import flags, process

FLAGS = absl_flags.FlagValues()
absl_flags.DEFINE_string("dataset", None, "Path, or quoted pattern.", flag_values=FLAGS)
absl_flags.DEFINE_string("env", None, "Of what acted, if it is known.", flag_values=FLAGS)
absl_flags.DEFINE_string("out", None, "The folder to write; must be new.", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Writes everything or nothing."""
    del argv
    for name in ("dataset", "out"):
        if not FLAGS[name].value:
            raise flags.UsageError(f"--{name} is missing; see --help.")
    paths = [FLAGS.dataset]
    if not pathlib.Path(FLAGS.dataset).exists():  # brackets may be part of a name
        paths = sorted(glob.glob(FLAGS.dataset)) or paths

    from rljax import sources
    from rljax.offline import mapped
    from rljax.offline import sources as datasets

    with flags.usage_errors():
        spec = sources.open(sources.EnvSource(FLAGS.env, 1)).spec if FLAGS.env else None
        episodes = steps = 0
        try:
            with mapped.writing(FLAGS.out, datasets.feature_hash(paths[0])) as append:
                for path in paths:  # what a bandit's features mean, the first says
                    for part in datasets.parts(path, spec, paths[0]):
                        append(part)
                        episodes, steps = episodes + part.num_episodes, steps + part.num_steps
        except OSError as error:
            raise flags.UsageError(f"nothing was converted: {error}.") from error
    size = sum(file.stat().st_size for file in pathlib.Path(FLAGS.out).iterdir())
    print(f"{FLAGS.out}: {episodes:,} episodes, {steps:,} steps, {size / 1e6:,.1f} MB")
    return 0


if __name__ == "__main__":
    process.prepare()
    flags.run(main, flags_parser=functools.partial(flags.parse_script, flag_values=FLAGS))
