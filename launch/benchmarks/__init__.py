"""What `launch.benchmark` measures: one module per benchmark, imported only when asked for.

A module has two functions of `Options`: `versions`, the packages that it compares with (raises
UsageError, before anything is measured, where one is missing), and `rows`, which measures and
yields one `table.Row` after another. It may have two more: `TAKES`, the flags that it obeys where
they are not the usual ones (any other is refused), and `finish(report, output)`, which draws what
belongs beside the file.
"""

import dataclasses
import pathlib

BENCHMARKS = {  # name on the command line -> module
    "accelerator": "launch.benchmarks.accelerator",
    "off_policy": "launch.benchmarks.off_policy",
    "in_graph": "launch.benchmarks.in_graph",
    "offline": "launch.benchmarks.offline",
    "offline_speed": "launch.benchmarks.offline_speed",
    "ppo": "launch.benchmarks.ppo",
    "scaling": "launch.benchmarks.scaling",
    "scores": "launch.benchmarks.scores",
    "suite": "launch.benchmarks.suite",
}


USUAL_FLAGS = ("repeats", "env", "num_threads", "peers", "peer_python")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; no row depends on anything else."""

    repeats: int = 3  # timed windows per figure, of which the median is reported
    env: str | None = None  # only the settings of this environment
    num_threads: int = 2  # of the pool, ours and the peers' alike
    peers: tuple[str, ...] | None = None  # None: those that the benchmark compares with
    peer_python: pathlib.Path = pathlib.Path(".venv-bench/bin/python")
    envs: tuple[str, ...] = ()  # tasks of a suite
    agents: tuple[str, ...] = ()  # that a suite compares
    trials: int = 5  # seeds of each pair of them
    total_steps: int | None = None  # of every run; None: as the presets have it
    dataset: str | None = None  # that agents learn from
