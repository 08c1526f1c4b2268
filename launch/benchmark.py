"""Measures how fast a part of this code is, beside its peers, on this machine.

    python -m launch.benchmark ppo --output=runs/benchmarks/ppo.json

A table goes to stdout, progress to stderr, and everything into --output as JSON. Nothing else
should run meanwhile: the file says how busy the machine was. `make bench` first installs the peers.
"""

import contextlib
import datetime
import importlib
import json
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterator
from typing import IO, Any

from absl import flags

from launch import command_line, process
from launch.benchmarks import BENCHMARKS, USUAL_FLAGS, Options, table
from launch.experiment import versions
from rljax import files
from rljax.config import UsageError, nearest

FLAGS = flags.FlagValues()  # its own: other scripts have an --env too
flags.DEFINE_string(
    "output", None, "JSON file to write; offline: in runs/offline/DATASET.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "repeats", Options.repeats, "Timed windows, of which the median counts.", 1, flag_values=FLAGS
)
flags.DEFINE_string("env", None, "Only what runs on this environment.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_threads", Options.num_threads, "Threads of every pool.", 1, flag_values=FLAGS
)
flags.DEFINE_string(
    "peers", None, "Whom to compare with: ppo has sb3,sbx; empty: nobody.", flag_values=FLAGS
)
flags.DEFINE_string(
    "peer_python",
    str(Options.peer_python),
    "The interpreter that has the peers installed.",
    flag_values=FLAGS,
)
flags.DEFINE_list("envs", [], "suite: the tasks.", flag_values=FLAGS)
flags.DEFINE_list("agents", [], "suite, scores, offline: whose runs.", flag_values=FLAGS)
flags.DEFINE_integer(
    "trials", Options.trials, "suite, offline: seeds of a pair.", 1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "total_steps", None, "suite: steps of every run; offline: updates.", 1, flag_values=FLAGS
)
flags.DEFINE_string("dataset", None, "offline: what all agents learn from.", flag_values=FLAGS)


def parse(argv: list[str]) -> list[str]:
    """Parses the name, which comes first, and the flags; returns program and name.

    Raises:
        UsageError: there is no such benchmark, or a flag is unknown, wrong, missing or not its own.
    """
    name = [argument for argument in argv[1:2] if not argument.startswith("-")]
    command_line.parse_script([argv[0], *argv[1 + len(name) :]], FLAGS)
    if not name:
        raise UsageError(f"the name of a benchmark must come first; {nearest('', BENCHMARKS)}")
    if name[0] not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name[0]!r}; {nearest(name[0], BENCHMARKS)}")
    benchmark = importlib.import_module(BENCHMARKS[name[0]])
    if not (FLAGS.output or hasattr(benchmark, "output")):
        raise UsageError("--output is missing: the file for the results, e.g. --output=ppo.json.")
    takes = (*getattr(benchmark, "TAKES", USUAL_FLAGS), "output")
    for flag in FLAGS:
        if FLAGS[flag].present and flag not in takes:
            known = ", ".join(f"--{taken}" for taken in takes)
            raise UsageError(f"{name[0]} does not use --{flag}; its flags are {known}.")
    return [argv[0], *name]


def main(argv: list[str]) -> None:
    """Measures row after row, then writes the file and prints the table."""
    benchmark = importlib.import_module(BENCHMARKS[argv[1]])
    options = Options(
        repeats=FLAGS.repeats,
        env=FLAGS.env,
        num_threads=FLAGS.num_threads,
        peers=None if FLAGS.peers is None else tuple(filter(None, FLAGS.peers.split(","))),
        peer_python=pathlib.Path(FLAGS.peer_python),
        envs=tuple(FLAGS.envs),
        agents=tuple(FLAGS.agents),
        trials=FLAGS.trials,
        total_steps=FLAGS.total_steps,
        dataset=FLAGS.dataset,
    )
    report = {
        "command": shlex.join(["python", "-m", "launch.benchmark", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "peer_versions": benchmark.versions(options),
    }
    measured = benchmark.rows(options)
    output = pathlib.Path(FLAGS.output or benchmark.output(options))
    rows: list[table.Row] = []
    with replacing(output) as file:
        for row in measured:
            if not rows or row.settings != rows[-1].settings:
                print(f"\n{table.title(row.settings)}", file=sys.stderr)
            print(f"  {table.line(row)}", file=sys.stderr, flush=True)
            rows.append(row)
        report = {"rows": [table.to_json(row) for row in rows], **report}
        json.dump(report, file, indent=2)
    print(table.aligned(rows))
    if hasattr(benchmark, "finish"):
        benchmark.finish(report, output)


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was just before."""
    import jax

    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "devices": [device.device_kind for device in jax.local_devices()],
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0],
    }


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[str]]:
    """A file that takes the place of `path` once the block has ended well; else nothing is left.

    Raises UsageError, before the block, where there can be no such file.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(files.replacing(path))
            file = stack.enter_context(partial.open("w"))
        except OSError as error:
            raise UsageError(f"--output={path} cannot be written: {error.strerror}.") from error
        yield file


if __name__ == "__main__":
    process.prepare()
    command_line.run(main, flags_parser=parse)
